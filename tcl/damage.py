"""What is wrong with a file of weights that cannot be read: seen from the file, not from a library's complaint."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

from tcl.errors import CheckpointError

AGAIN = "download or copy it again"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # what files of torch begin with: those since version 1.6, and older ones
_LFS = b"version https://git-lfs"
_PAGE = re.compile(rb"\s*<[!?A-Za-z]")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def damage(path: Path, hint: str = AGAIN) -> CheckpointError:
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
    except (OSError, zipfile.BadZipFile):
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
