"""The files of a model folder and of a checkpoint: names, hashes, reading them without running code, the hub."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tcl.damage import damage, is_of_torch
from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.files.hub import quiet_hub
from tcl.models.lora import merged_state_dict
from tcl.models.tcl import TCL
from tcl.weights.find import CONFIG_FILE

WEIGHTS_FILE = "model.safetensors"

STATE_FILE = "train_state.pt"

META_FILE = "meta.json"

MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, "tokenizer.json", "preprocess.json")

AGAIN = "copy the model folder again, or take a checkpoint of its run"


def hash_model(model: TCL) -> str:
    """SHA-256 of everything that decides a vector: weights, sizes, vocabulary, preprocessing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(merged_state_dict(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(json.dumps(model.processor.settings(), sort_keys=True).encode())
    digest.update(model.processor.tokenizer.to_json().encode())
    return digest.hexdigest()


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def read_tensors(path: Path, lazily: bool = False) -> dict[str, Any]:
    """`torch.load` that never runs code from the file.

    Args:
        path: the file.
        lazily: map the file rather than read it: a tensor costs nothing until it is used.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch comments on the pickle's protocol; ours is to refuse or not
            mmap = lazily and zipfile.is_zipfile(path)  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if not is_of_torch(path):  # whatever it is, nobody meant it as a pickle
            raise damage(path) from error
        raise CheckpointError(
            f"{path}: refused: it is no plain checkpoint, and loading it could run code",
            hint="a checkpoint of tensors, numbers and strings is accepted; ask for one, or for safetensors",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise damage(path) from error


def fetch_model(hub_id: str, names: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a hub repository with those of the files `names` that it has.

    Raises:
        UsageError: there is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            return Path(snapshot_download(hub_id, allow_patterns=list(names)))
    except Exception as error:  # the hub client raises many kinds, from its HTTP library too
        raise UsageError(
            f"{hub_id}: neither a file or folder here nor a model that could be fetched from the hub: "
            f"{reason_of(error)}",
            hint="check the name and the network, or give a folder",
        ) from error
