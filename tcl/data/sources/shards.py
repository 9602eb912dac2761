"""Samples of a tar shard, as WebDataset and img2dataset write them.

Members whose names agree up to the first dot of the last part (the key) are one sample, wherever they stand: images,
and what is said about them in `KEY.json` or in the lines of `KEY.txt`. Nothing is extracted: a record names the place
of its images in the shard.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.sources.columns import TEXT_COLUMNS, Columns
from tcl.data.sources.record import Record, Skipped, Stored, first_value
from tcl.data.storage.open import member_reference
from tcl.data.storage.tar import Damaged, Member, NotATar, check_plain, tar_members
from tcl.data.tables.json_stream import MAX_ROW_BYTES, parse
from tcl.errors import DataError


@dataclass(slots=True)
class _Sample:
    """The members of one key; `extra` are texts behind the first of their kind."""

    images: list[Member] = field(default_factory=list)
    json: Member | None = None
    txt: Member | None = None
    refused: str = ""
    extra: list[str] = field(default_factory=list)


def shard_records(path: Path, name: str, container: str, columns: Columns) -> Iterator[Record | Skipped]:
    """Samples of a shard in the order of their first members, then what was wrong with it.

    A shard that is cut off gives the samples before the cut.

    Args:
        path: the local file.
        name: what errors and ids call it.
        container: what references to its images call it: a path or URL.
        columns: what is wanted; texts are not read for images alone.

    Raises:
        DataError: it is no tar archive, or compressed.
    """
    with path.open("rb") as file:
        check_plain(file, name)
        damage = None
        samples: dict[str, _Sample] = {}
        try:
            for member in tar_members(file):
                _assign(member, samples)
        except NotATar as error:
            raise DataError(f"{name}: not a tar archive", hint="is it another format, or an error page?") from error
        except Damaged as error:
            damage = Skipped(name, str(error))
        for key, sample in samples.items():
            place = f"{name} {key}"
            if columns.kind != "image":
                yield from (Skipped(place, f"{extra} is a second one of this key, {ENDS}") for extra in sample.extra)
            missing = _missing(sample, columns)
            if sample.refused or missing:
                yield Skipped(place, sample.refused or str(missing))
            elif missing is not None:
                yield _record(key, sample, file, name, container, columns)
        if damage:
            yield damage


ENDS = "which ends at the first dot"


def first_image(images: Sequence[Stored]) -> tuple[Stored, list[str]]:
    """The image of a sample, which counts before `KEY.mask.png`, and the names of others that might be it."""
    if len(images) == 1:
        return images[0], []
    first = min(images, key=lambda image: _is_compound(image.name))
    rank = _is_compound(first.name)
    return first, [other.name for other in images if other is not first and _is_compound(other.name) <= rank]


def _is_compound(name: str) -> bool:
    return posixpath.basename(name).count(".") > 1


def _assign(member: Member, samples: dict[str, _Sample]) -> None:
    folder, base = posixpath.split(member.name)
    stem, _, suffix = base.partition(".")
    last = suffix.rpartition(".")[2].lower()
    part = "images" if f".{last}" in IMAGE_SUFFIXES else last
    if not stem or part not in ("images", "json", "txt"):  # a hidden file, a label, an embedding, ...
        return
    sample = samples.setdefault(posixpath.join(folder, stem), _Sample())
    if member.name.startswith("/") or ".." in member.name.split("/"):
        sample.refused = "its name leads out of the shard"
    elif member.refused:
        sample.refused = member.refused
    elif not member.name.isascii() and member.name != member.name.encode("utf-8", "replace").decode():
        sample.refused = "its name is not UTF-8"
    elif part == "images":
        sample.images.append(member)
    elif (taken := getattr(sample, part)) is None or ("." not in suffix and _is_compound(taken.name)):
        setattr(sample, part, member)
    elif _is_compound(taken.name) or "." not in suffix:
        sample.extra.append(member.name)


def _missing(sample: _Sample, columns: Columns) -> str | None:
    """What a pair lacks; None for a sample that holds nothing of the kind that is wanted; else empty."""
    if columns.kind == "image":
        return "" if sample.images else None
    texts = sample.json is not None or sample.txt is not None
    if columns.kind == "text":
        return "" if texts else None
    if not sample.images:
        return "a caption without an image"
    return "" if texts else "an image without a caption"


def _record(key: str, sample: _Sample, file: BinaryIO, name: str, container: str, columns: Columns) -> Record:
    row: dict[str, Any] = {}
    problem = ""
    if columns.kind != "image" or columns.id or columns.condition:
        try:
            row = _content(sample, file, columns)
        except ValueError as error:
            problem = str(error)
    if not columns.id:
        row.pop("id", None)
    if columns.kind != "text":
        row[columns.image_keys[0]] = [
            Stored(member.name, member_reference(container, *member[:3])) for member in sample.images
        ]
    return Record(name, key, key, row, "", problem)


def _content(sample: _Sample, file: BinaryIO, columns: Columns) -> dict[str, Any]:
    """What `.json` says, with the lines of `.txt` as texts where it has none."""
    row: dict[str, Any] = {}
    if sample.json:
        text = _text(sample.json, file)
        try:
            row = parse(text)
        except ValueError as error:
            raise ValueError(f"{sample.json.name}: malformed JSON: {getattr(error, 'msg', error)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{sample.json.name}: not an object but {type(row).__name__}")
    if sample.txt and first_value(row, (columns.text,) if columns.text else TEXT_COLUMNS[:-1]) is None:  # no `title`
        row[columns.text_keys[0]] = [line.strip() for line in _text(sample.txt, file).splitlines() if line.strip()]
    return row


def _text(member: Member, file: BinaryIO) -> str:
    if member.size > MAX_ROW_BYTES:
        raise ValueError(f"{member.name} is larger than {MAX_ROW_BYTES >> 20} MB")
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name}: not UTF-8 text") from error
