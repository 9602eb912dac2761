"""Checkpoints of a run: a model folder, and with it all that training needs to go on.

    runs/<name>/checkpoints/step-00001000/
        model.safetensors  config.json  tokenizer.json  preprocess.json  README.md
        train_state.pt     optimizer, loss scale, low-rank parts, teacher, queues; tensors and plain values only
        meta.json          step, epoch, samples per step, resolved recipe, fingerprint of the data, threads

Each folder is written under a temporary name and renamed, so one that has its name is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tcl.errors import CheckpointError, reason_of
from tcl.files.atomic import atomic_folder
from tcl.models.tcl import TCL
from tcl.weights.files import META_FILE, STATE_FILE, checkpoints, read_tensors, weights_error
from tcl.weights.find import WEIGHTS_FILE, read_json
from tcl.weights.model_folder import write_model


def save_checkpoint(run: Path, model: TCL, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write `checkpoints/step-<step>` of a run.

    Args:
        run: the run folder.
        model: the trained model.
        state: tensors and plain values only.
        meta: a JSON object with `step`.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; nothing of it is left.
    """
    folder = run / "checkpoints" / f"step-{meta['step']:08d}"
    if folder.is_dir():  # complete, and a resumed run computes the same again
        return folder
    try:
        with atomic_folder(folder) as temporary:
            write_model(model, temporary)
            torch.save(state, temporary / STATE_FILE)
            (temporary / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk comes as any of the three
        raise CheckpointError(
            f"{folder}: cannot be written: {reason_of(error)}; earlier checkpoints are intact",
            hint=f"free some space, then continue with --resume --out {run}",
        ) from error
    return folder


def prune_checkpoints(run: Path, keep: int, spare: Collection[Path] = ()) -> None:
    """Delete all checkpoints of a run but the newest.

    Args:
        run: the run folder.
        keep: how many to keep.
        spare: folders that are still needed, such as those that are being copied.
    """
    for old in checkpoints(run)[:-keep]:
        if old not in spare:
            doomed = old.with_name(f".{old.name}.old")  # half deleted, it must not pass for a checkpoint
            old.rename(doomed)
            shutil.rmtree(doomed)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, training state and meta of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    hint = "delete this checkpoint folder to resume from the one before it"
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise weights_error(folder / WEIGHTS_FILE, hint) from error
    return weights, read_tensors(folder / STATE_FILE, hint=hint), read_json(folder / META_FILE)
