"""Samples of a tar shard, as WebDataset and img2dataset write them: pairs, or single images and texts.

Members whose names agree up to the first dot of the last part (the key) are one sample: an image, its captions in
`KEY.json` (under the names of `tcl.data.tables.formats`) or in the lines of `KEY.txt`. A pair has both; `tcl embed`
takes images and texts one by one, with or without partners. Nothing is extracted: a row names the place of its image in
the shard.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.sources.columns import Columns, InputRow, several, table_texts
from tcl.data.sources.folders import is_image
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


def shard_rows(
    path: Path, name: str, container: str, kind: str, columns: Columns, warnings: list[str]
) -> Iterator[InputRow]:
    """Images of a shard, or texts of its `.json` and `.txt` members, in its order.

    Members that stand together and agree up to the first dot of their names are one sample. The id of an image is its
    member's name, that of a text the sample's; a column of ids or a condition is looked for in the sample's `.json`.

    Args:
        path: the local file.
        name: what errors call it.
        container: what references to its members call it.
        kind: `image` or `text`.
        columns: which members of a `.json` count.
        warnings: gets a line for what cannot be read.

    Raises:
        DataError: it is no tar archive.
    """
    with path.open("rb") as file:
        try:
            for key, group in groupby(tar_members(file), _key):
                if not posixpath.basename(key):  # a hidden file
                    continue
                sample = _ListedSample(name, key, [*group], file, columns, warnings)
                yield from sample.images(container) if kind == "image" else sample.texts()
        except NotATar as error:
            raise DataError(
                f"{name}: not a tar archive", hint="is it compressed, another format, or an error page?"
            ) from error
        except Damaged as error:
            warnings.append(f"{name}: {error}; what comes behind is left out")


def _key(member: Member) -> str:
    folder, base = posixpath.split(member.name)
    return posixpath.join(folder, base.partition(".")[0])


class _ListedSample:
    """The members of one key."""

    def __init__(
        self, shard: str, key: str, members: Sequence[Member], file: BinaryIO, columns: Columns, warnings: list[str]
    ) -> None:
        self._shard = shard
        self._key = key
        self._members = members
        self._file = file
        self._columns = columns
        self._warnings = warnings

    def images(self, container: str) -> Iterator[InputRow]:
        images = [member for member in self._members if is_image(member.name) and self._is_plain(member)]
        row = self._row() if self._columns.look_into_json else {}
        if not images or not self._columns.wants(row):
            return
        given = self._given(row)
        for member in images:
            row_id, place = given or member.name, f"{self._shard} {member.name}"
            yield InputRow(row_id, member_reference(container, *member[:3]), place, given is not None)

    def texts(self) -> Iterator[InputRow]:
        sidecars = [member for member in self._members if _suffix(member) in ("json", "txt")]
        if not sidecars:
            return
        row = self._row()
        if not self._columns.wants(row):
            return
        texts = table_texts(row, self._columns.text_keys)
        if not texts and (lines := self._content("txt")) is not None:
            texts = [line.strip() for line in lines.splitlines() if line.strip()]
        given = self._given(row)
        yield from several(given or self._key, texts or [""], f"{self._shard} {self._key}", given is not None)

    def _given(self, row: dict[str, Any]) -> str | None:
        return self._columns.row_id(row) if self._columns.id else None

    def _row(self) -> dict[str, Any]:
        """What the sample's `.json` says; empty where there is none, or none that can be read."""
        content = self._content("json")
        if content is None:
            return {}
        try:
            row = parse(content)
        except ValueError as error:
            self._warn(f"malformed JSON: {getattr(error, 'msg', error)}")
            return {}
        if not isinstance(row, dict):
            self._warn(f"its .json holds no object but {type(row).__name__}")
            return {}
        return row

    def _content(self, suffix: str) -> str | None:
        member = next((item for item in self._members if _suffix(item) == suffix and self._is_plain(item)), None)
        if member is None:
            return None
        if member.size > MAX_ROW_BYTES:
            self._warn(f"{member.name} is larger than {MAX_ROW_BYTES >> 20} MB")
            return None
        self._file.seek(member.offset)
        try:
            return self._file.read(member.size).decode("utf-8-sig")
        except UnicodeDecodeError:
            self._warn(f"{member.name} is not UTF-8 text")
            return None

    def _is_plain(self, member: Member) -> bool:
        if member.refused:
            self._warn(f"{member.name} is {member.refused}; left out")
        return not member.refused

    def _warn(self, reason: str) -> None:
        self._warnings.append(f"{self._shard} {self._key}: {reason}")


def _suffix(member: Member) -> str:
    return member.name.rpartition(".")[2].lower()
