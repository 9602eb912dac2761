"""Files in folders and behind globs: found without loops, in natural order, nothing left out unsaid.

Links to folders are followed, each folder is read once, and a file whose name is no Unicode is left out with a word.
"""

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
from tcl.data.images.kind import is_image_file
from tcl.data.sources.record import Skipped
from tcl.data.strings import Strings, byte_strings
from tcl.errors import DataError, UsageError
from tcl.files.names import natural_key, to_unicode

_CHUNK = 16384
_JUNK = ("@eaDir", "__MACOSX")  # folders of a NAS and of macOS; its files begin with `._`
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

Progress = Callable[[int], object]


def is_image(name: str) -> bool:
    """Whether a file is called as an image is."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_metadata(name: str) -> bool:
    """Whether a file is called as one with what there is to say about the images beside it."""
    return PurePosixPath(name).name in _METADATA


def images_of(folder: Path) -> Callable[[str], bool]:
    """Whether a file of a folder is an image: called as one, or without a suffix and with the content of one."""
    return lambda name: is_image(name) or (not PurePosixPath(name).suffix and is_image_file(str(folder / name)))


def check_name(name: str) -> None:
    """Names must be Unicode, as everything that names them later must.

    Raises:
        UsageError: this one is not.
    """
    if not _is_unicode(name):
        raise UsageError(f"{to_unicode(name)}: its name is not Unicode", hint="rename it")


def files_in(
    folder: Path,
    wanted: Callable[[str], bool],
    skipped: list[Skipped],
    progress: Progress = lambda found: None,
    exclude: Sequence[str] = (),
) -> Strings:
    """Files of a folder and its sub-folders, relative to it; hidden ones are left out.

    Args:
        folder: where to look.
        wanted: given the path of a file, whether it counts.
        skipped: gets what cannot be read, and in one line what a NAS or macOS has put there.
        progress: called with the number of files found since the last call.
        exclude: patterns of files and sub-folders that are not looked at: of their path, or of any name in it.

    Raises:
        DataError: the folder itself cannot be read.
    """

    def kept(name: str) -> bool:
        return not any(
            fnmatchcase(name, pattern) or fnmatchcase(PurePosixPath(name).name, pattern) for pattern in exclude
        )

    names = _files_below(folder, lambda parts: kept("/".join(parts)), lambda name: kept(name) and wanted(name), skipped)
    return _in_order(names, progress)


def images_matching(
    patterns: Sequence[str], skipped: list[Skipped], progress: Progress = lambda found: None
) -> tuple[Strings, Path]:
    """Images that are named, match a glob, or are in a folder that is named, and the folder that they are relative to.

    That is the one before the first wildcard; of several patterns, the one that they have in common.

    Raises:
        DataError: that folder cannot be read.
        UsageError: there is no such file.
    """
    split = [split_pattern(f"{pattern}/**" if os.path.isdir(pattern) else pattern) for pattern in patterns]
    root = split[0][0] if len(split) == 1 else Path(os.path.commonpath([folder.absolute() for folder, _ in split]))
    found = dict[str, None]() if len(split) > 1 else None
    for pattern, (folder, segments) in zip(patterns, split, strict=True):
        if not glob.has_magic(pattern) and not os.path.exists(pattern):
            raise UsageError(f"no such file or folder: {pattern}", hint="check the pattern")
        names = _matching(folder, segments, skipped)
        if found is None:
            return _in_order(names, progress), root
        front = os.path.relpath(folder.absolute(), root)
        found.update(dict.fromkeys(names if front == "." else (f"{front}/{name}" for name in names)))
    return _in_order(found or (), progress), root


def _matching(root: Path, segments: list[str], skipped: list[Skipped]) -> Iterator[str]:
    def enter(parts: Sequence[str]) -> bool:
        fixed = segments[: segments.index("**")] if "**" in segments else segments[:-1]
        deep = len(parts) > len(fixed)
        return (not deep or "**" in segments) and all(map(fnmatchcase, parts, fixed))

    if root.is_dir():
        yield from _files_below(
            root, enter, lambda name: is_image(name) and _matches(name.split("/"), segments), skipped
        )


def split_pattern(pattern: str) -> tuple[Path, list[str]]:
    """The folder before a glob's first wildcard, and the parts from there on."""
    parts = Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts[:-1]) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed]), list(parts[fixed:])


def _matches(parts: Sequence[str], segments: Sequence[str]) -> bool:
    if not segments:
        return not parts
    if segments[0] == "**":
        return _matches(parts, segments[1:]) or (bool(parts) and _matches(parts[1:], segments))
    return bool(parts) and fnmatchcase(parts[0], segments[0]) and _matches(parts[1:], segments[1:])


def _files_below(
    root: Path, enter: Callable[[Sequence[str]], bool], wanted: Callable[[str], bool], skipped: list[Skipped]
) -> Iterator[str]:
    """Files in any order, hidden ones left out; real folders are read before what links lead to."""
    seen: set[tuple[int, int]] = set()
    folders = [""]
    links: list[tuple[bytes, str]] = []
    junk, example = 0, ""
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
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith("._") or (entry.name in _JUNK and entry.is_dir()):
                        junk += _count(entry.path)
                        example = min(example or name, name)
                    if entry.name.startswith(".") or entry.name in _JUNK:
                        continue
                    is_link = entry.is_symlink()
                    is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
                    if not is_folder and not wanted(name):
                        continue
                    if not _is_unicode(entry.name):
                        reason = "its name is not Unicode; left out"
                        skipped.append(Skipped(f"cannot read {to_unicode(entry.path)}", reason))
                    elif not is_folder:
                        yield name
                    elif is_link:
                        heapq.heappush(links, (natural_key(name), name))
                    else:
                        folders.append(name)
        except OSError as error:
            if not folder:
                raise DataError(f"cannot read {path}: {error.strerror}", hint="check who may read it") from error
            skipped.append(Skipped(f"cannot read {path}", f"{error.strerror}; its images are left out"))
    if junk:
        reason = f"{junk} files of {', '.join(_JUNK)} and ._*, as {example}, are no data; left out"
        skipped.append(Skipped(str(root), reason))


def _count(path: str) -> int:
    """The files in a folder, or one for a file."""
    return sum(len(files) for _, _, files in os.walk(path)) if os.path.isdir(path) else 1


def _is_unicode(name: str) -> bool:
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


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
