"""What a user names as data, taken apart: which files, which rows of them, how often.

    SOURCE[#COLUMN=VALUE][@WEIGHT]

SOURCE is a file, a folder, a glob (`data/*.tar`), a brace pattern (`shard-{000..127}.tar`, `{a,b}.jsonl`), or
`scenes:`; a file, glob or brace pattern may be a URL. A file that is really called as it is written comes first. A
folder without images stands for the shards in it, or else for its Parquet files.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NoReturn

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.scenes import scenes
from tcl.data.sources.folders import check_name, files_in, images_matching, images_of, is_image, is_metadata
from tcl.data.sources.record import unreadable
from tcl.data.storage.open import check_regular
from tcl.data.storage.tar import unpack_command
from tcl.data.tables.formats import READERS
from tcl.errors import UsageError
from tcl.files import remote
from tcl.files.named import allow
from tcl.files.names import natural_key

_WEIGHT = re.compile(r"@([0-9]*\.?[0-9]+(?:[eE]-?[0-9]+)?)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_MAX_FILES = 100_000  # that braces stand for
_REMOTE_LOOKS = 16  # at once
_IN_FOLDERS = (".tar", ".parquet")

MAX_WEIGHT = 1000
"""Visits of one pair in an epoch."""


@dataclass(frozen=True)
class DataFile:
    """One file, folder or set of scenes of a source.

    Args:
        name: as the user named it, a path, URL or `scenes:` specification.
        stamp: a text that changes when it does.
    """

    name: str
    stamp: str

    @property
    def location(self) -> str:
        """Absolute path, or URL."""
        return self.name if remote.is_url(self.name) else os.path.abspath(self.name)

    @property
    def suffix(self) -> str:
        """In lower case, with its dot; empty for a folder."""
        return "" if os.path.isdir(self.name) else PurePosixPath(remote.url_path(self.name)).suffix.lower()

    def local(self) -> Path:
        """Where it can be opened: the path itself, or a copy of the remote file.

        Raises:
            OSError: it cannot be downloaded.
        """
        return remote.fetch(self.name, self.stamp) if remote.is_url(self.name) else Path(self.name)


@dataclass(frozen=True)
class Source:
    """One source of image-text pairs.

    Args:
        text: as the user wrote it.
        files: in natural order.
        condition: column and value that rows must have.
        weight: visits of each pair in an epoch, on average.
    """

    text: str
    files: tuple[DataFile, ...]
    condition: tuple[str, str] | None = None
    weight: float = 1.0


def find_source(text: str) -> Source:
    """Take a source apart and look for its files.

    Raises:
        UsageError: nothing is there, the format is unknown, or the text is malformed.
        DataError: a remote cannot be reached.
    """
    if "\0" in text:
        raise UsageError(f"{text!r}: no file has a name with a NUL in it")
    name, weight = _split_weight(text)
    name = not_a_scene(name)
    if name.startswith(scenes.PREFIX):
        return Source(text, (DataFile(name, ""),), weight=weight)
    name, condition = _split_condition(name)
    name = name.removeprefix("file://")
    try:
        files = tuple(_find(name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no such file or folder: {error.filename}", hint=_missing_hint(name)) from error
    except OSError as error:
        raise unreadable(name, error) from error
    for file in files:
        _check_format(file)
    return Source(text, files, condition, weight)


def not_a_scene(name: str) -> str:
    """The name of a source, of a file in such a way that it reads as no scenes."""
    return f"./{name}" if name.startswith(scenes.PREFIX) and os.path.exists(name) else name


def _split_weight(text: str) -> tuple[str, float]:
    name, mark, _ = text.rpartition("@")
    found = _WEIGHT.fullmatch(text, len(name))
    if not mark or not found or os.path.exists(text):
        return text, 1.0
    weight = float(found[1])
    if not 0 < weight <= MAX_WEIGHT:
        raise UsageError(
            f"{text}: a weight is a number above 0, at most {MAX_WEIGHT}",
            hint=f"write {name}@0.5, or leave the source out",
        )
    return name, weight


def _split_condition(text: str) -> tuple[str, tuple[str, str] | None]:
    """`file.jsonl#split=train` -> `file.jsonl`, (`split`, `train`)."""
    name, mark, condition = text.rpartition("#")
    if not mark or os.path.exists(text):
        return text, None
    column, equals, value = condition.partition("=")
    if not equals or not column:
        raise UsageError(f"{text}: '#{condition}' is not a condition", hint="write #COLUMN=VALUE, as in #split=train")
    return name, (column, value)


def _find(name: str) -> list[DataFile]:
    if os.path.exists(name):
        found = _look_at(name)
    elif remote.is_url(name):
        found = _find_remote(without_braces(name))
    else:
        found = _find_local(without_braces(name))
    return [DataFile(*item) for item in sorted(found.items(), key=lambda item: natural_key(item[0]))]


def _find_local(patterns: list[str]) -> dict[str, str]:
    """Names and stamps of files."""
    names: set[str] = set()
    for pattern in patterns:
        if _has_wildcard(pattern):
            names.update(_matches(pattern) or _no_match(pattern))
        else:
            names.add(pattern)
    return {file: stamp for name in names for file, stamp in _look_at(name).items()}


def _matches(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)
    if any(map(is_image, found)):  # with texts beside them, which are no sources of their own
        images, root = images_matching([pattern], [])
        return [str(root / name) for name in images]
    return found


def names_tables(source: str) -> bool:
    """Whether a source, perhaps with braces, wildcards, a condition, is called as tables or shards are."""
    names = without_braces(re.sub(r"#[^#/]*=[^#]*$|@[0-9.]+$", "", source))
    return all(PurePosixPath(remote.url_path(name)).suffix.lower() in (*READERS, ".tar") for name in names)


def _find_remote(patterns: list[str]) -> dict[str, str]:
    """URLs and stamps of files; what these name may be beside them."""
    for pattern in patterns:
        allow(pattern)
    single = [pattern for pattern in patterns if not _has_wildcard(pattern)]
    with ThreadPoolExecutor(_REMOTE_LOOKS) as pool:
        found = dict(zip(single, pool.map(remote.stamp, single), strict=True))
    for pattern in patterns:
        if _has_wildcard(pattern):
            found |= remote.find(pattern) or _no_match(pattern)
    return found


def without_braces(name: str) -> list[str]:
    """A name without its braces: each alternative once."""
    patterns = list(islice(_expand(name), _MAX_FILES + 1))
    if len(patterns) > _MAX_FILES:
        raise _too_many(name)
    return list(dict.fromkeys(patterns))


def _expand(name: str) -> Iterator[str]:
    names = _alternatives(name)
    if not names:
        yield name
    for other in names:
        yield from _expand(other)


def _alternatives(name: str) -> list[str]:
    """The names that the first braces stand for; none where there are none, or they hold one word only."""
    for braces in _BRACES.finditer(name):
        words = braces[1].split(",")
        if span := _RANGE.fullmatch(braces[1]):
            first, last = int(span[1]), int(span[2])
            if abs(last - first) >= _MAX_FILES:
                raise _too_many(name)
            width = len(span[1]) if span[1].startswith("0") else 0
            words = [str(number).zfill(width) for number in range(min(first, last), max(first, last) + 1)]
        if len(words) > 1 or span:
            return [name[: braces.start()] + word + name[braces.end() :] for word in words]
    return []


def _no_match(pattern: str) -> NoReturn:
    raise UsageError(f"no files match {pattern}", hint="check the pattern, and quote it so that the shell keeps it")


def _too_many(name: str) -> UsageError:
    return UsageError(f"{name}: more than {_MAX_FILES:,} files", hint="is the range right?")


def _has_wildcard(name: str) -> bool:
    web = name.startswith(("http://", "https://"))  # where ? begins a query
    return any(mark in name for mark in ("*[" if web else "*?["))


def _look_at(name: str) -> dict[str, str]:
    """A file or folder with its stamp; of a folder without images, the files in it."""
    check_name(os.path.abspath(name))
    if not os.path.isdir(name):
        return {name: f"{_stamp(name)} {_texts_stamp(Path(name))}" if is_image(name) else _stamp(name)}
    folder = Path(name)
    an_image = images_of(folder)
    files = files_in(folder, lambda file: an_image(file) or is_metadata(file) or file.endswith(_IN_FOLDERS), [])
    if any(not is_metadata(file) and not file.endswith(_IN_FOLDERS) for file in files):
        return {name: _folder_stamp(folder, files)}
    for suffix in _IN_FOLDERS:
        if inside := [str(folder / file) for file in files if file.endswith(suffix)]:
            return {file: _stamp(file) for file in inside}
    return {name: ""}


def _folder_stamp(folder: Path, files: Iterable[str]) -> str:
    """From the names of its images, and the sizes and times of what is said about them."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\n".encode())
        stamp = _stamp(folder / file) if is_metadata(file) else _texts_stamp(folder / file)
        digest.update(f"{stamp}\n".encode())
    return digest.hexdigest()


def _stamp(path: str | Path) -> str:
    """Size and time of a file.

    Raises:
        UsageError: it is a pipe or device, which would be waited for forever.
    """
    check_regular(str(path))
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def _texts_stamp(image: Path) -> str:
    """Of the texts beside an image; empty where there are none."""
    texts = image.with_suffix(".txt")
    return _stamp(texts) if texts.is_file() else ""


def _check_format(file: DataFile) -> None:
    suffix = file.suffix
    if suffix in READERS or suffix == ".tar" or os.path.isdir(file.name):
        return
    if suffix in IMAGE_SUFFIXES and not remote.is_url(file.name):
        return
    if command := unpack_command(file.name):
        raise UsageError(
            f"{file.name} is compressed: data is read from any place of a file", hint=f"unpack it: {command}"
        )
    hint = f"use {', '.join(READERS)}, .tar, a folder of images with .txt files, or scenes:"
    if not suffix and remote.is_url(file.name):
        hint = f"a folder behind a URL is not listed; name its files, as in {file.name.rstrip('/')}/*.tar"
    raise UsageError(f"{file.name}: unknown data format '{suffix}'", hint=hint)


def _missing_hint(name: str) -> str:
    before, mark, weight = name.rpartition("@")
    if mark and os.path.exists(before):
        return f"a weight is a number above 0, as in {before}@2, not '{weight}'"
    return "check the URL" if remote.is_url(name) else "check the path given as data"


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source.

    Args:
        source: as the user named it.
        start: its first row.
        stop: the row behind its last.
        weight: visits of each of its pairs in an epoch, on average.
    """

    source: str
    start: int
    stop: int
    weight: float = 1.0
