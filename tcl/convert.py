"""Weights from elsewhere: published TCL and ALBEF checkpoints, and the encoders that pre-training starts from."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from tcl.checkpoint import hash_model, read_tensors
from tcl.config import ModelConfig, TextEncoderArgs
from tcl.data.captions import CaptionTokenizer
from tcl.errors import CheckpointError, ConfigError, UsageError
from tcl.models.tcl import TCL
from tcl.models.vision import resize_position_embeddings
from tcl.processor import Processor

# Of a published checkpoint these are not the model: the teacher, the queues, and copies of tied weights.
NOT_THE_MODEL = re.compile(
    r"^(\w+_m\.|(image|text|idx)_queue$|queue_ptr$|.*\.position_ids$|.*\.cls\.predictions\.decoder\.)"
)
# Downstream checkpoints of the published code have no MLM head; embedding and matching do without.
OPTIONAL = "text_encoder.cls."

EVALUATION_LENGTH = 30  # tokens that published retrieval evaluation keeps


def rename_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a published pre-training or retrieval checkpoint to this model's; teacher and queues are dropped."""
    state = {name: tensor for name, tensor in state.items() if not NOT_THE_MODEL.match(name)}
    if not any(name.startswith("text_encoder.bert.") for name in state):  # retrieval saves the bare encoder
        state = {name.replace("text_encoder.", "text_encoder.bert.", 1): tensor for name, tensor in state.items()}
    return state


def load_reference(path: Path) -> TCL:
    """A published checkpoint (`TCL_4M.pth`, `ALBEF.pth`, their retrieval fine-tunings) as a model in evaluation mode.

    The tokenizer is the `tokenizer.json` or `vocab.txt` beside the file, else `bert-base-uncased` from the hub.

    Raises:
        CheckpointError: pickled code (refused), not such a checkpoint, or keys without a place; the message lists them.
    """
    content = read_tensors(path)
    state = content.get("model", content) if isinstance(content, dict) else {}
    if not isinstance(state, dict) or "visual_encoder.pos_embed" not in state:
        raise CheckpointError(
            f"{path}: holds no TCL or ALBEF model (no visual_encoder.pos_embed in it)", hint="is it the right file?"
        )
    state = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    state = rename_reference(state)
    beside = any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    tokenizer = CaptionTokenizer.load(path.parent if beside else "bert-base-uncased")
    config, vocab_size = infer_config(state, str(path))
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{path}: its vocabulary has {vocab_size} words, the tokenizer {tokenizer.vocab_size}",
            hint="put the model's own vocab.txt beside the file",
        )
    model = TCL.from_config(config, vocab_size)
    load_exactly(model, state, str(path))
    model.processor = Processor(tokenizer, (config.image_size, config.image_size), config.max_length)
    model.model_hash = hash_model(model)
    return model.eval()


def infer_config(state: dict[str, Tensor], place: str) -> tuple[ModelConfig, int]:
    """Sizes from the shapes; attention heads are 64 wide, as in every published model. Returns the vocabulary size too.

    Raises:
        CheckpointError: a part that decides a size is missing.
    """
    try:
        patch = state["visual_encoder.patch_embed.proj.weight"]
        patches = state["visual_encoder.pos_embed"].shape[1] - 1
        words = state["text_encoder.bert.embeddings.word_embeddings.weight"]
        layers = _count(state, r"text_encoder\.bert\.encoder\.layer\.(\d+)\.attention\.")
        fused = _count(state, r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
        config = ModelConfig(
            image_encoder="vit_base_patch16_224",
            image_encoder_args={
                "patch_size": patch.shape[-1],
                "embed_dim": patch.shape[0],
                "depth": len(_count(state, r"visual_encoder\.blocks\.(\d+)\.")),
                "num_heads": max(patch.shape[0] // 64, 1),
            },
            image_size=round(patches**0.5) * patch.shape[-1],
            text_encoder_args=TextEncoderArgs(
                hidden_size=words.shape[1],
                num_hidden_layers=len(layers),
                num_attention_heads=max(words.shape[1] // 64, 1),
                intermediate_size=state["text_encoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
                max_position_embeddings=state["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0],
            ),
            pretrained=False,
            fusion_layer=min(fused, default=len(layers)),
            embed_dim=state["vision_proj.weight"].shape[0],
            max_length=EVALUATION_LENGTH,
        )
    except KeyError as error:
        raise CheckpointError(
            f"{place}: no TCL or ALBEF model: {error.args[0]} is missing", hint="is it the right file?"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{place}: no TCL or ALBEF model: {' '.join(str(error).split())}") from error
    return config, words.shape[0]


def load_exactly(model: TCL, state: dict[str, Tensor], place: str) -> None:
    """Load weights, resampling position embeddings; every key must find its place.

    Raises:
        CheckpointError: naming the keys that are missing, left over, or of another shape.
    """
    state = dict(state)
    key = "visual_encoder.pos_embed"
    state[key] = resize_position_embeddings(state[key], model.visual_encoder.grid_size)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state and not name.startswith(OPTIONAL)]
    unused = [name for name in state if name not in wanted]
    reshaped = [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unknown", unused), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{place}: its weights do not fit this model: {'; '.join(problems)}",
            hint="pre-training and retrieval checkpoints of TCL and ALBEF load; those of other tasks do not yet",
        )
    model.load_state_dict(state, strict=False)


def load_pretrained_encoders(model: TCL) -> None:
    """Start from the encoders that `model.config` names: timm's ViT weights and BERT's, as published pre-training does.

    Cross-attention and the projections have no pretrained weights and keep their random ones.

    Raises:
        UsageError: weights cannot be fetched or found.
        ConfigError: they do not fit the sizes in the recipe.
    """
    import timm
    import transformers

    config = model.config
    try:
        vit = timm.create_model(config.image_encoder, pretrained=True, num_classes=0, **config.image_encoder_args)
    except Exception as error:  # the hub client raises many kinds, from its HTTP library too
        raise _cannot_start("image_encoder", config.image_encoder, error) from error
    state = dict(vit.state_dict())
    state["pos_embed"] = resize_position_embeddings(state["pos_embed"], model.visual_encoder.grid_size)
    _load_part(model.visual_encoder, state, f"model.image_encoder {config.image_encoder}")
    try:
        bert = transformers.BertForMaskedLM.from_pretrained(config.text_encoder)
    except Exception as error:
        raise _cannot_start("text_encoder", config.text_encoder, error) from error
    state = {name: tensor for name, tensor in bert.state_dict().items() if not NOT_THE_MODEL.match(f"text.{name}")}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("bert.pooler.")}
    _load_part(model.text_encoder, state, f"model.text_encoder {config.text_encoder}")


def _cannot_start(key: str, name: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(
        f"model.{key}: the weights of {name!r} cannot be loaded: {reason}",
        hint="with a network they come from the hub; without pretrained weights: model.pretrained=false",
    )


def _load_part(module: nn.Module, state: dict[str, Tensor], place: str) -> None:
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state and ".crossattention." not in name]
    wrong = [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    for name in missing + wrong:
        shapes = (tuple(x[name].shape) if name in x else None for x in (state, wanted))
        raise ConfigError(
            f"{place}: its weights do not fit the recipe: {name} is {next(shapes)} there, {next(shapes)} here",
            hint="make the sizes and the vocabulary agree, or set model.pretrained=false",
        )
    module.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted}, strict=False)


def _count(state: dict[str, Tensor], pattern: str) -> set[int]:
    return {int(match.group(1)) for name in state if (match := re.match(pattern, name))}
