"""Files of a model folder and of a checkpoint: their names, how they are read, and why one cannot be.

Reading runs no code from a file. What is wrong with one is seen from its bytes, not from a library's complaint. Here
is also the hash of a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tcl.errors import CheckpointError
from tcl.models.adapters import merged_state_dict
from tcl.models.tcl import TCL

COPY_AGAIN = "download or copy it again"

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # what files of torch begin with: those since version 1.6, and older ones
_LFS = b"version https://git-lfs"
_PAGE = re.compile(rb"\s*<[!?A-Za-z]")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def weights_error(path: Path, hint: str = COPY_AGAIN) -> CheckpointError:
    """The error of a file of weights that a library has failed to read.

    Args:
        path: the file.
        hint: what to do about one that is cut off or damaged.
    """
    try:
        size = os.path.getsize(path)
        with path.open("rb") as file:
            head = file.read(1024)
        whole = zipfile.is_zipfile(path)
    except OSError as error:
        return CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}", "check the path and its permissions"
        )
    if head.startswith(_LFS):
        return CheckpointError(f"{path}: a pointer of Git LFS, not the file itself", "git lfs pull")
    if _PAGE.match(head) and b"\0" not in head[:16]:
        return CheckpointError(f"{path}: a web page, not weights", "download the file itself")
    if not size:
        reason = "the file is empty"
    elif path.suffix == ".safetensors":
        reason = _safetensors(path, head, size)
    elif head.startswith(_ZIP):
        reason = _archive(path) if whole else f"cut off after {size:,} bytes"
    elif head.startswith(_PICKLE):
        reason = "cut off or damaged"
    else:
        reason = "not a file of weights that torch wrote"
    return CheckpointError(f"{path}: {reason}", hint)


def is_of_torch(path: Path) -> bool:
    """Whether a file begins as those do that torch writes."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)).startswith((_ZIP, _PICKLE))


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return "damaged"
    if "constants.pkl" in names:
        return "a TorchScript program, not plain weights"
    return "damaged" if "data.pkl" in names else "a ZIP archive that torch did not write"


def _safetensors(path: Path, head: bytes, size: int) -> str:
    """Compare the bytes that are there with those that the header speaks of."""
    length = int.from_bytes(head[:8], "little")
    if size > 8 and (head[8:9] != b"{" or length > _MAX_HEADER):
        return "not a safetensors file"
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + length)[8:])
        expected = 8 + length + max(item["data_offsets"][1] for name, item in header.items() if name != "__metadata__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"cut off after {size:,} bytes" if size < 8 + length else "damaged"
    return f"cut off: {size:,} of {expected:,} bytes" if size < expected else "damaged"


STATE_FILE = "train_state.pt"
META_FILE = "meta.json"

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


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """`safetensors.torch.save_file`, but readable for whom the umask lets read: the library writes for the owner alone.

    Raises:
        OSError: the file cannot be made.
        SafetensorError: it cannot be written.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata)
    path.chmod(mode)


def read_tensors(path: Path, lazily: bool = False, hint: str = COPY_AGAIN) -> dict[str, Any]:
    """`torch.load` that never runs code from the file.

    Args:
        path: the file.
        lazily: map the file rather than read it: a tensor costs nothing until it is used.
        hint: what to do about one that is cut off or damaged.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        # torch comments on the pickle's protocol; ours is to refuse or not
        with warnings.catch_warnings(action="ignore"):
            mmap = lazily and zipfile.is_zipfile(path)  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if not is_of_torch(path):  # whatever it is, nobody meant it as a pickle
            raise weights_error(path, hint) from error
        raise CheckpointError(
            f"{path}: refused: it is no plain checkpoint, and loading it could run code",
            hint="a checkpoint of tensors, numbers and strings is accepted; ask for one, or for safetensors",
        ) from error
    except Exception as error:  # a damaged pickle may end in any of a dozen kinds
        raise weights_error(path, hint) from error
