"""Images in folders and behind globs: found without loops, in natural order, nothing left out unsaid."""

from __future__ import annotations

import glob
import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.strings import Strings, byte_strings
from tcl.errors import DataError
from tcl.files.names import natural_key

_CHUNK = 16384

Progress = Callable[[int], object]


def images_in(folder: Path, warnings: list[str], progress: Progress) -> Strings:
    """Images of a folder and its sub-folders, relative to it.

    Args:
        folder: where to look; links to folders are followed, and each folder is read once.
        warnings: gets a line for each sub-folder that cannot be read.
        progress: called with the number of images found since the last call.

    Raises:
        DataError: the folder itself cannot be read.
    """
    return _in_order(filter(is_image, _files_below(folder, lambda parts: True, warnings)), progress)


def images_matching(pattern: str, warnings: list[str], progress: Progress) -> tuple[Strings, Path]:
    """Images that match a glob, relative to the folder before its first wildcard, and that folder.

    Raises:
        DataError: that folder cannot be read.
    """
    root, segments = split_pattern(pattern)

    def enter(parts: Sequence[str]) -> bool:
        fixed = segments[: segments.index("**")] if "**" in segments else segments[:-1]
        deep = len(parts) > len(fixed)
        return (not deep or "**" in segments) and all(map(fnmatchcase, parts, fixed))

    if not root.is_dir():
        return Strings.of(()), root
    found = (name for name in _files_below(root, enter, warnings) if _matches(name.split("/"), segments))
    return _in_order(filter(is_image, found), progress), root


def split_pattern(pattern: str) -> tuple[Path, list[str]]:
    """The folder before a glob's first wildcard, and the parts from there on."""
    parts = Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts[:-1]) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed]), list(parts[fixed:])


def is_image(name: str) -> bool:
    """Whether a file is called as an image is."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _matches(parts: Sequence[str], segments: Sequence[str]) -> bool:
    if not segments:
        return not parts
    if segments[0] == "**":
        return _matches(parts, segments[1:]) or (bool(parts) and _matches(parts[1:], segments))
    return bool(parts) and fnmatchcase(parts[0], segments[0]) and _matches(parts[1:], segments[1:])


def _files_below(root: Path, enter: Callable[[Sequence[str]], bool], warnings: list[str]) -> Iterator[str]:
    """Files in any order, hidden ones left out; real folders are read before what links lead to."""
    seen: set[tuple[int, int]] = set()
    folders = [""]
    links: list[tuple[bytes, str]] = []
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)[1]
        if folder and not enter(folder.split("/")):
            continue
        path = root / folder
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        heapq.heappush(links, (natural_key(name), name))
                    else:
                        yield name
        except OSError as error:
            if not folder:
                raise DataError(f"cannot read {path}: {error.strerror}", hint="check who may read it") from error
            warnings.append(f"cannot read {path}: {error.strerror}; its images are left out")


def _in_order(names: Iterable[str], progress: Progress) -> Strings:
    """Names in natural order; Arrow sorts them, in a fifth of the memory of Python's objects."""
    rest = iter(names)
    found, keys = list[Strings](), list[pa.Array]()
    while chunk := list(islice(rest, _CHUNK)):
        found.append(Strings.of(chunk))
        keys.append(byte_strings([natural_key(name) for name in chunk]))
        progress(len(chunk))
    order = pc.sort_indices(pa.chunked_array(keys, pa.large_binary()))
    del keys
    whole = Strings.concatenated(found).column.combine_chunks()
    del found
    # Taken from one piece, or every step would put it together again.
    steps = (order.slice(start, _CHUNK) for start in range(0, len(order), _CHUNK))
    return Strings(pa.chunked_array([whole.take(step) for step in steps], pa.large_binary()))
