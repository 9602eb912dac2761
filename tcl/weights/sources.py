"""Weights to start from, wherever they are: recognised and read, together with what their shapes do not show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tcl.config.recipe import ModelConfig, one_line
from tcl.data.tokenizer import VOCABULARY_FILES, CaptionTokenizer
from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.files.hub import quiet_hub
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tcl.weights.files import weights_error
from tcl.weights.find import CONFIG_FILE, WEIGHTS_FILE, ModelSource, fetch_model, find_model, read_json
from tcl.weights.layouts import Layout, layout_of, published_head
from tcl.weights.model_folder import read_head
from tcl.weights.published import HEAD_WIDTH, Reference, Tensors, read_reference, read_state
from tcl.weights.untrained import read_untrained

TIMM = "timm:"
BERT_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
BERT_HAS = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}  # and TCL's text encoder
WEIGHT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Weights(Tensors):
    """Weights to start from.

    Attributes:
        heads: attention heads of (image encoder, text encoder), where known.
        tokenizer: the vocabulary that belongs to them, where there is one.
        config: the sizes, where they are written down.
        head: the task they were fine-tuned for, and its classes; those of a published model of VQA are not known.
        untrained: parts that hold random numbers, where that is written down.
    """

    heads: tuple[int | None, int | None] = (None, None)
    tokenizer: CaptionTokenizer | None = None
    config: ModelConfig | None = None
    head: HeadConfig | None = None
    untrained: tuple[str, ...] = ()


def open_source(found: ModelSource) -> Path | Reference:
    """Open a model: the folder that holds it, fetched where it is of the hub, or a published checkpoint, read.

    Raises:
        UsageError: it is an exported bundle, whose weights cannot be loaded back, or cannot be fetched.
        CheckpointError: no published checkpoint.
    """
    if found.kind == "bundle":
        raise UsageError(
            f"{found.location}: an exported bundle holds no weights that could be loaded back",
            hint="give the run or model folder that it was exported from",
        )
    return read_reference(found.path) if found.kind == "reference" else found.fetch()


def open_weights(source: str) -> Weights:
    """Read weights to start from.

    Args:
        source: a published checkpoint (`.pth`) of any task; a run, a model folder or a checkpoint of this package, or
            its hub id; `timm:NAME` for an image encoder; a `.pth`, `.bin` or `.safetensors` of a ViT in timm's names;
            a folder, file or hub id of an encoder of the BERT family.

    Raises:
        UsageError: there is no such thing, or it cannot be fetched.
        CheckpointError: it is damaged, or none of these.
    """
    if source.startswith(TIMM):
        return timm_weights(source.removeprefix(TIMM))
    path = Path(source)
    if path.is_file():
        return _open_file(path)
    return _open_named(source)


def _open_named(source: str) -> Weights:
    """A folder or a hub id."""
    path = Path(source)
    if path.is_dir():
        own = (path / CONFIG_FILE).is_file() and "model" in read_json(path / CONFIG_FILE)
        if not own and any((path / name).is_file() for name in BERT_FILES):
            return _open_bert(path, source)
        folder = open_source(find_model(source))
        assert isinstance(folder, Path)  # a published checkpoint is a file
        return _open_own(folder, source)
    if not _HUB_ID.fullmatch(source) or path.suffix in WEIGHT_SUFFIXES:
        raise UsageError(
            f"{source}: no such weights",
            hint="a run, a model folder, a published .pth, timm:NAME, a BERT folder, or a hub id",
        )
    names = [CONFIG_FILE, *VOCABULARY_FILES]
    folder = fetch_model(source, [*names, WEIGHTS_FILE])
    if not (folder / WEIGHTS_FILE).is_file():  # an older upload
        folder = fetch_model(source, [*names, BERT_FILES[1]])
    return _open_own(folder, source) if "model" in read_json(folder / CONFIG_FILE) else _open_bert(folder, source)


def _open_file(path: Path) -> Weights:
    state = _read_safetensors(path) if path.suffix == ".safetensors" else read_state(path)[0]
    layout = layout_of(state)
    if layout is None:
        raise CheckpointError(
            f"{path}: holds neither a TCL or ALBEF model, nor a ViT or BERT encoder", hint="is it the right file?"
        )
    tokenizer = None if layout.kind == "ViT" else _vocabulary_in(path.parent)
    if not layout.published:
        return Weights(str(path), layout, state, tokenizer=tokenizer)
    head = published_head(state, answers=["unknown"])  # the file has none, and only the decoder is wanted
    return Weights(str(path), layout, state, _published_heads(state), tokenizer, head=head)


def _open_own(folder: Path, place: str) -> Weights:
    values = read_json(folder / CONFIG_FILE)
    try:
        config, head = ModelConfig.model_validate(values["model"]), read_head(values)
        with torch.device("meta"):  # for its attention heads, which timm knows by the encoder's name
            heads = attention_heads(TCL.from_config(config, int(str(values["vocab_size"]))))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: {one_line(error)}", hint="copy the model folder again"
        ) from error
    state = _read_safetensors(folder / WEIGHTS_FILE)
    layout = Layout("model", first_pair=config.fusion_layer if head and head.images_per_text == 2 else None)
    return Weights(place, layout, state, heads, CaptionTokenizer.load(folder), config, head, read_untrained(values))


def _open_bert(folder: Path, place: str) -> Weights:
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    for key, value in BERT_HAS.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{place}: its {key} is {config[key]}, that of the text encoder is {value}",
                hint="the text encoder is BERT; models of other layers do not fit into it",
            )
    path = next((folder / name for name in BERT_FILES if (folder / name).is_file()), folder / WEIGHTS_FILE)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else read_state(path)[0]
    layout = layout_of(state)
    if layout is None or layout.kind != "BERT":
        raise CheckpointError(f"{path}: holds no encoder of the BERT family", hint="is it the right folder?")
    heads = config.get("num_attention_heads")
    return Weights(place, layout, state, (None, heads if isinstance(heads, int) else None), _vocabulary_in(folder))


def timm_weights(name: str, arguments: Mapping[str, int | float] | None = None) -> Weights:
    """The pretrained weights of a timm ViT.

    Args:
        name: timm's name of it.
        arguments: changes to it, as in `model.image_encoder_args`.

    Raises:
        UsageError: timm has none of that name, or they cannot be fetched.
    """
    import timm

    try:
        with quiet_hub():
            vit: Any = timm.create_model(name, pretrained=True, num_classes=0, **(arguments or {}))
    except Exception as error:  # the hub client raises many kinds, from its HTTP library too
        raise UsageError(
            f"{TIMM}{name}: timm cannot load these weights: {reason_of(error)}",
            hint="check the name and the network, or give a file of the weights",
        ) from error
    return Weights(f"{TIMM}{name}", Layout("ViT"), dict(vit.state_dict()), (_vit_heads(vit), None))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise weights_error(path) from error


def _vocabulary_in(folder: Path) -> CaptionTokenizer | None:
    there = any((folder / name).is_file() for name in VOCABULARY_FILES)
    return CaptionTokenizer.load(folder) if there else None


def attention_heads(model: TCL) -> tuple[int | None, int | None]:
    """Attention heads of (image encoder, text encoder): what shapes do not show."""
    return _vit_heads(model.visual_encoder), model.config.text_encoder_args.num_attention_heads


def _vit_heads(vit: nn.Module) -> int | None:
    blocks: Any = getattr(vit, "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def _published_heads(state: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    bert = "text_encoder.bert." if "text_encoder.bert.embeddings.LayerNorm.bias" in state else "text_encoder."
    image, text = (
        state[name].numel() // HEAD_WIDTH if name in state and state[name].numel() % HEAD_WIDTH == 0 else None
        for name in ("visual_encoder.norm.bias", f"{bert}embeddings.LayerNorm.bias")
    )
    return image, text
