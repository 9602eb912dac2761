"""Image-text pairs of a tar shard, as WebDataset and img2dataset write them. Imports no torch.

Members whose names agree up to the first dot of the last part (the key) are one sample: an image, its captions in
`KEY.json` (under the names of `tcl.data.tables.formats`) or in the lines of `KEY.txt`. Nothing is extracted: a row names the
place of its image in the shard.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.storage.open import member_reference
from tcl.data.storage.tar import Damaged, Member, NotATar, _check_plain, tar_members
from tcl.data.tables.formats import CAPTION_KEYS, Row
from tcl.data.tables.json_stream import MAX_ROW_BYTES, parse
from tcl.errors import DataError


class Skipped(NamedTuple):
    """Something that gives no pair: where it stands, and why."""

    place: str
    reason: str


@dataclass(slots=True)
class _Sample:
    """The members of one key; `extra` are those whose part was taken already."""

    image: Member | None = None
    json: Member | None = None
    txt: Member | None = None
    refused: str = ""
    extra: list[str] = field(default_factory=list)


def read_tar(path: Path, name: str, location: str) -> Iterator[Row | Skipped]:
    """Rows of a shard in the order of their first members, then what was wrong with it.

    Of two members with the same key and kind the first counts. A shard that is cut off gives the rows before the cut.

    Args:
        path: the local file.
        name: what errors and image ids call it.
        location: absolute path or URL, for references to its images.

    Raises:
        DataError: it is no tar archive, or compressed.
    """
    with path.open("rb") as file:
        _check_plain(file, name)
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
            yield from _rows_of(key, sample, file, name, location)
        if damage:
            yield damage


def _assign(member: Member, samples: dict[str, _Sample]) -> None:
    folder, base = posixpath.split(member.name)
    stem, _, suffix = base.partition(".")
    last = f".{suffix.rpartition('.')[2].lower()}"
    part = "image" if last in IMAGE_SUFFIXES else last[1:]
    if not stem or part not in ("image", "json", "txt"):  # a hidden file, a label, an embedding, ...
        return
    sample = samples.setdefault(posixpath.join(folder, stem), _Sample())
    if member.name.startswith("/") or ".." in member.name.split("/"):
        sample.refused = "its name leads out of the shard"
    elif member.refused:
        sample.refused = member.refused
    elif not member.name.isascii() and member.name != member.name.encode("utf-8", "replace").decode():
        sample.refused = "its name is not UTF-8"
    elif (taken := getattr(sample, part)) is None or ("." not in suffix and _is_compound(taken)):
        setattr(sample, part, member)  # KEY.jpg counts before KEY.segmentation.jpg
    elif _is_compound(taken) or "." not in suffix:
        sample.extra.append(member.name)


def _is_compound(member: Member) -> bool:
    return posixpath.basename(member.name).count(".") > 1


def _rows_of(key: str, sample: _Sample, file: BinaryIO, name: str, location: str) -> Iterator[Row | Skipped]:
    place = f"{name} {key}"
    for extra in sample.extra:
        yield Skipped(place, f"{extra} is a second one of this key, which ends at the first dot")
    if sample.refused:
        yield Skipped(place, sample.refused)
    elif sample.image is None:
        yield Skipped(place, "a caption without an image")
    elif sample.json is None and sample.txt is None:
        yield Skipped(place, "an image without a caption")
    else:
        try:
            row = _content(sample, file)
        except ValueError as error:
            yield Skipped(place, str(error))
            return
        image = sample.image
        row["image"] = member_reference(location, *image[:3])
        if row.get("image_id") in (None, ""):
            row["image_id"] = f"{name}!{image.name}"
        yield key, row


def _content(sample: _Sample, file: BinaryIO) -> dict[str, Any]:
    """What `.json` says, with the lines of `.txt` as captions where it has none."""
    row: dict[str, Any] = {}
    if sample.json:
        text = _text(sample.json, file)
        try:
            row = parse(text)
        except ValueError as error:
            raise ValueError(f"{sample.json.name}: malformed JSON: {getattr(error, 'msg', error)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{sample.json.name}: not an object but {type(row).__name__}")
    if sample.txt and not any(row.get(key) for key in CAPTION_KEYS):
        lines = _text(sample.txt, file).splitlines()
        row[CAPTION_KEYS[0]] = [line.strip() for line in lines if line.strip()]
    return row


def _text(member: Member, file: BinaryIO) -> str:
    if member.size > MAX_ROW_BYTES:
        raise ValueError(f"{member.name} is larger than {MAX_ROW_BYTES >> 20} MB")
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name}: not UTF-8 text") from error
