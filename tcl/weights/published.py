"""Published TCL and ALBEF checkpoints, read as models: recognised by their keys, sized by their shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcl.config.recipe import ModelConfig, TextEncoderArgs
from tcl.data.labels.questions import read_answer_list
from tcl.data.processor import Processor
from tcl.data.tokenizer import VOCABULARY_FILES, CaptionTokenizer
from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tcl.weights.files import hash_model, read_tensors
from tcl.weights.keyreport import KeyReport, Shape, account
from tcl.weights.layouts import (
    NOT_THE_MODEL,
    Layout,
    first_fusion_layer,
    layout_of,
    published_head,
    task_places,
    task_state,
)
from tcl.weights.untrained import parts_of

EVALUATION_LENGTH = 30  # tokens that published retrieval evaluation keeps
ANSWERS_FILE = "answer_list.json"  # of VQA, beside its checkpoint
WHOLE = ("pre-training", "retrieval")  # kinds of published files that hold all parts of a TCL model
PUBLISHED_VOCABULARY = "bert-base-uncased"  # of every published model
HEAD_WIDTH = 64  # of its attention heads, of which a file says nothing
EMBED_DIM = 256  # of every published model; read off the projections where there are any


@dataclass(frozen=True)
class Tensors:
    """Tensors of a file, recognised.

    Attributes:
        place: where they come from, for messages.
        layout: what they are.
        state: tensors under the names of the file, in its order.
    """

    place: str
    layout: Layout
    state: dict[str, Tensor]

    def renamed(self) -> dict[str, Tensor]:
        """Those that have a place in a TCL model, under its names."""
        placed = ((self.layout.place(name).target, tensor) for name, tensor in self.state.items())
        return {target: tensor for target, tensor in placed if target is not None}

    def report(self, model: TCL) -> KeyReport:
        """What becomes of each key in `model`."""
        return account(self.place, self.layout.kind, shapes(self.state), shapes(model.state_dict()), self.layout.place)

    def lacks(self, name: str) -> bool:
        """Whether they have nothing for this key of a model, and need not have it."""
        return self.layout.lacks(name, self.state)


@dataclass(frozen=True)
class Reference(Tensors):
    """A published checkpoint as it was read.

    Attributes:
        others: what else is in the file, by name: the optimizer, the epoch, ...
    """

    others: list[str]


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a `.pth`, bare or under "model" or "state_dict", and the names of what else is in it.

    Raises:
        CheckpointError: it is damaged, or cannot be read without running code from it.
    """
    content: Any = read_tensors(path, lazily=True)
    others: list[str] = []
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            others = [str(key) for key in content if key != name]
            content = content[name]
            break
    state = content if isinstance(content, dict) else {}
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}, others


def read_reference(path: Path) -> Reference:
    """Read a checkpoint of the published code, for any of its tasks.

    Raises:
        CheckpointError: pickled code (refused), or not such a checkpoint.
    """
    state, others = read_state(path)
    layout = layout_of(state)
    if layout is None or not layout.published:
        raise CheckpointError(
            f"{path}: holds no TCL or ALBEF model (no visual_encoder.pos_embed in it)", hint="is it the right file?"
        )
    return Reference(str(path), layout, state, others)


def build_reference(reference: Reference, tokenizer: str | None = None) -> TCL:
    """The model of a checkpoint of pre-training or retrieval (`TCL_4M.pth`, `ALBEF.pth`), in evaluation mode.

    Args:
        reference: as it was read.
        tokenizer: its vocabulary. Default: the `tokenizer.json` or `vocab.txt` beside the file, else
            `bert-base-uncased` from the hub.

    Raises:
        CheckpointError: of another task, or keys without a place; the message lists them.
    """
    place, state = reference.place, reference.renamed()
    config, vocab_size = infer_config(state, place)
    model = TCL.from_config(config, vocab_size)
    report = reference.report(model)
    _check_complete(reference, report)
    model.untrained = parts_of(report.missing)
    vocabulary = reference_tokenizer(Path(place), tokenizer)
    if vocabulary.vocab_size > vocab_size:
        raise CheckpointError(
            f"{place}: its vocabulary has {vocab_size} words, the tokenizer {vocabulary.vocab_size}",
            hint="put the model's own vocab.txt beside the file",
        )
    model.load_state_dict({name: state[name] for name in model.state_dict() if name in state}, strict=False)
    model.processor = Processor(vocabulary, config.image_shape, config.max_length)
    model.model_hash = hash_model(model)
    return model.eval()


def build_fine_tuned(reference: Reference, tokenizer: str | None = None, answers: list[str] | None = None) -> TaskModel:
    """The model of a checkpoint of VQA, entailment, NLVR2 or text assignment, for its task alone, in evaluation mode.

    Such a file has no projections and no matching head; those of the model are random, the same every time, and named
    in its `untrained`. So it answers its task, and is not for vectors, which is why `build_reference` refuses it.

    Args:
        reference: as it was read.
        tokenizer: see `build_reference`.
        answers: what a model of VQA chooses from. Default: the `answer_list.json` beside the file.

    Raises:
        UsageError: there is no answer list.
        CheckpointError: of pre-training or retrieval, or keys are missing or without a place; the message lists them.
    """
    place, head = reference.place, head_of(reference, answers)
    if head is None:
        raise CheckpointError(
            f"{place}: a checkpoint of {reference.layout.kind}, without the head of a task",
            hint=f"train one: tcl finetune TASK --model {place} --data SOURCE",
        )
    config, vocab_size = infer_config(reference.renamed(), place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attach_head(TCL.from_config(config, vocab_size), head)
    report = report_task(reference, shapes(model.state_dict()))
    problem = report.problem(reference.lacks)
    if problem:
        raise CheckpointError(f"{place}: its weights do not fit this model: {problem}", hint="is the file complete?")
    model.load_state_dict(task_state(reference.state), strict=False)
    model.untrained = parts_of(report.missing)
    model.processor = Processor(reference_tokenizer(Path(place), tokenizer), config.image_shape, config.max_length)
    model.model_hash = hash_model(model)
    return model.eval()


def head_of(reference: Reference, answers: list[str] | None = None) -> HeadConfig | None:
    """The task that a published checkpoint was fine-tuned for; None for pre-training and retrieval.

    Raises:
        UsageError: it is of vqa, and there is no answer list.
    """
    beside = Path(reference.place).with_name(ANSWERS_FILE)
    if answers is None and reference.layout.kind == "VQA" and beside.is_file():
        answers = read_answer_list(beside)
    return published_head(reference.state, answers)


def report_task(reference: Reference, ours: Mapping[str, Shape]) -> KeyReport:
    """What becomes of each key of a fine-tuned checkpoint in a model with its head, whose keys are `ours`."""
    places = task_places(reference.state)
    return account(reference.place, reference.layout.kind, shapes(reference.state), ours, places.__getitem__)


def reference_tokenizer(path: Path, tokenizer: str | None = None) -> CaptionTokenizer:
    """The vocabulary of a published checkpoint: the one named, the one beside the file, else BERT's from the hub.

    Raises:
        UsageError: there is no such vocabulary, or no way to the hub.
    """
    if tokenizer is None and any((path.parent / name).is_file() for name in VOCABULARY_FILES):
        return CaptionTokenizer.load(path.parent)
    try:
        return CaptionTokenizer.load(tokenizer or PUBLISHED_VOCABULARY)
    except UsageError as error:
        if tokenizer is not None:
            raise
        raise UsageError(
            f"{path}: there is no vocab.txt beside it, and {PUBLISHED_VOCABULARY} cannot be fetched from the hub",
            hint=f"put the vocab.txt of BERT there, or name it: tcl convert {path} OUT --tokenizer PATH",
        ) from error


def infer_config(state: Mapping[str, Tensor], place: str) -> tuple[ModelConfig, int]:
    """Sizes from the shapes; attention heads are 64 wide, as in every published model. Returns the vocabulary size too.

    Raises:
        CheckpointError: a part that decides a size is missing.
    """
    try:
        patch = state["visual_encoder.patch_embed.proj.weight"]
        patches = state["visual_encoder.pos_embed"].shape[1] - 1
        words = state["text_encoder.bert.embeddings.word_embeddings.weight"]
        layers = _count(state, r"text_encoder\.bert\.encoder\.layer\.(\d+)\.attention\.")
        fused = first_fusion_layer(state)
        config = ModelConfig(
            image_encoder="vit_base_patch16_224",
            image_encoder_args={
                "patch_size": patch.shape[-1],
                "embed_dim": patch.shape[0],
                "depth": len(_count(state, r"visual_encoder\.blocks\.(\d+)\.")),
                "num_heads": heads_of(patch.shape[0]),
            },
            image_size=round(patches**0.5) * patch.shape[-1],
            text_encoder_args=TextEncoderArgs(
                hidden_size=words.shape[1],
                num_hidden_layers=len(layers),
                num_attention_heads=heads_of(words.shape[1]),
                intermediate_size=state["text_encoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
                max_position_embeddings=state["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0],
            ),
            pretrained=False,
            fusion_layer=len(layers) if fused is None else fused,
            embed_dim=state["vision_proj.weight"].shape[0] if "vision_proj.weight" in state else EMBED_DIM,
            max_length=EVALUATION_LENGTH,
        )
    except KeyError as error:
        raise CheckpointError(
            f"{place}: no TCL or ALBEF model: {error.args[0]} is missing", hint="is it the right file?"
        ) from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{place}: no TCL or ALBEF model: {reason_of(error)}") from error
    return config, words.shape[0]


def heads_of(width: int) -> int:
    """Attention heads that a published checkpoint of this width is read with."""
    return max(width // HEAD_WIDTH, 1)


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_complete(reference: Reference, report: KeyReport) -> None:
    """A model to use, unlike one to start from, needs every part, and a file of another task is not half of one."""
    if reference.layout.kind not in WHOLE:
        raise CheckpointError(
            f"{reference.place}: a checkpoint of {reference.layout.kind}, which lacks parts of the model: "
            f"{', '.join(parts_of(report.missing))}",
            hint=f"training can start from its encoders: tcl pretrain model.init={reference.place}",
        )
    of_others = [name for name in report.unused if not NOT_THE_MODEL.match(name)]
    whole = replace(report, unknown=[*report.unknown, *of_others])
    problem = whole.problem(reference.lacks)
    if problem:
        raise CheckpointError(
            f"{reference.place}: its weights do not fit this model: {problem}",
            hint="tcl inspect shows every key; pre-training and retrieval checkpoints of TCL and ALBEF load",
        )


def _count(state: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match.group(1)) for name in state if (match := re.match(pattern, name))}
