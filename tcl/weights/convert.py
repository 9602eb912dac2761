"""Published checkpoints to model folders and back, such that nothing of them changes on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tcl.errors import CheckpointError, TclError, UsageError, reason_of
from tcl.files.atomic import atomic_file, atomic_folder
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tcl.weights.files import STATE_FILE, read_tensors, save_tensors
from tcl.weights.keyreport import KeyReport
from tcl.weights.layouts import Layout, tied_to
from tcl.weights.model_folder import load_model_folder, write_model
from tcl.weights.published import (
    WHOLE,
    build_fine_tuned,
    build_reference,
    heads_of,
    read_reference,
    report_task,
    shapes,
)
from tcl.weights.sources import attention_heads

EXTRA_FILE = "extra.safetensors"  # beside a converted model: what the published file held besides it, and its order


def from_reference(path: Path, folder: Path, tokenizer: str | None = None) -> KeyReport:
    """Convert a published checkpoint to a model folder, which keeps what else the file held for the way back.

    One of VQA, entailment or NLVR2 becomes a model with its head, for its task alone, and cannot go back.

    Raises:
        UsageError: `folder` exists or cannot be written.
        CheckpointError: not such a checkpoint, keys without a place, or a disk that fills up.
    """
    if folder.exists():
        raise UsageError(f"{folder}: exists", hint="choose another name")
    reference = read_reference(path)
    if reference.layout.kind not in WHOLE:
        model: TCL = build_fine_tuned(reference, tokenizer)
        _write(folder, model)
        return report_task(reference, shapes(model.state_dict()))
    model = build_reference(reference, tokenizer)
    own = model.state_dict()
    extra = {}
    for name, tensor in reference.state.items():
        tied = tied_to(name)
        twin = reference.state.get(tied) if tied else own.get(reference.layout.place(name).target or "")
        if twin is None or not _identical(tensor, twin):
            extra[name] = tensor.clone().contiguous()  # a clone: two names of one storage cannot be saved
    keys = json.dumps(list(reference.state))
    _write(folder, model, extra, {"kind": reference.layout.kind, "keys": keys, "model_hash": model.model_hash})
    return reference.report(model)


def _write(
    folder: Path, model: TCL, extra: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None
) -> None:
    """A model folder, and what else the published file held."""
    try:
        with atomic_folder(folder) as temporary:
            write_model(model, temporary)
            if extra is not None:
                save_tensors(extra, temporary / EXTRA_FILE, metadata)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _cannot_write(folder, error) from error


def to_reference(folder: Path, target: Path, warn: Callable[[str], object] = lambda text: None) -> dict[str, Tensor]:
    """Write a model folder or a checkpoint of a run in the published format.

    Teacher and queues are written where the folder has them: a checkpoint, or a model that was converted from a
    published file.

    Args:
        folder: the model folder.
        target: a new file.
        warn: told what of the model the format has no place for.

    Returns:
        What was written under "model".

    Raises:
        UsageError: `target` exists or cannot be written.
        CheckpointError: the folder is damaged, or the disk fills up.
    """
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another name")
    model = load_model_folder(folder)
    if isinstance(model, TaskModel):
        raise UsageError(
            f"{folder}: fine-tuned for {model.head.task}; the published layout is written for models without a head",
            hint="convert the run that it was fine-tuned from",
        )
    if heads := _changed_heads(model):
        warn(f"a .pth does not say how many attention heads a model has: read back, {heads}, and vectors differ")
    if (folder / EXTRA_FILE).is_file():
        state = _original_state(model, folder / EXTRA_FILE)
    elif (folder / STATE_FILE).is_file():
        training = read_tensors(folder / STATE_FILE)
        state = reference_state(model.state_dict(), training.get("teacher"), training.get("queue"))
    else:
        state = reference_state(model.state_dict())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            torch.save({"model": state}, file)
    except (OSError, RuntimeError) as error:
        raise _cannot_write(target, error) from error
    return state


def reference_state(
    model: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor] | None = None,
    queue: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The published pre-training layout of a model's state, with teacher and queues where given."""
    state = {"temp": model["temp"], **(queue or {}), **model}
    for name, tensor in (teacher or {}).items():
        own = name.removeprefix("model.")
        if own not in model:
            raise CheckpointError(
                f"its teacher has {own}, which the model has not: it was trained with low-rank parts",
                hint="convert the run's model, whose low-rank parts are merged",
            )
        state[own.replace(".", "_m.", 1)] = tensor
    for encoder in ("text_encoder", "text_encoder_m") if teacher else ("text_encoder",):
        positions = len(state[f"{encoder}.bert.embeddings.position_embeddings.weight"])
        state[f"{encoder}.bert.embeddings.position_ids"] = torch.arange(positions)[None]
        for which in ("weight", "bias"):
            name = f"{encoder}.cls.predictions.decoder.{which}"
            state[name] = state[str(tied_to(name))]
    return state


def _changed_heads(model: TCL) -> str:
    """Which parts of a model will be read back with other attention heads, as theirs are not 64 wide."""
    image, text = attention_heads(model)
    parts = [
        ("image encoder", image, heads_of(model.visual_encoder.embed_dim)),
        ("text encoder", text, heads_of(model.config.text_encoder_args.hidden_size)),
    ]
    return ", ".join(f"the {part}'s {ours} become {theirs}" for part, ours, theirs in parts if ours != theirs)


def _original_state(model: TCL, path: Path) -> dict[str, Tensor]:
    """The tensors of the file that a folder was converted from, in their order."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            extra = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        if metadata["model_hash"] != model.model_hash:
            raise CheckpointError(
                f"{path}: belongs to another model than the one beside it",
                hint=f"delete {path.name} to convert the model alone",
            )
        own, layout = model.state_dict(), Layout("retrieval", bare=metadata["kind"] == "retrieval")

        def find(name: str) -> Tensor:
            if name in extra:
                return extra[name]
            tied = tied_to(name)
            return find(tied) if tied else own[str(layout.place(name).target)]

        return {name: find(name) for name in json.loads(metadata["keys"])}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged: {reason_of(error)}", hint="convert the published file again"
        ) from error


def _cannot_write(target: Path, error: Exception) -> TclError:
    reason = reason_of(error)
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
        return UsageError(f"{target}: cannot be written: {error.strerror or reason}", hint="choose another place")
    return CheckpointError(f"{target}: cannot be written: {reason}", hint="free some space; nothing of it is left")


def _identical(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, as 0 equals -0, and NaN nothing."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))
