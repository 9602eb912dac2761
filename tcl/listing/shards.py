"""Images or texts of a tar shard for `tcl embed`, one by one, with or without partners. Imports no torch."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from tcl.data.sources.columns import Columns, InputRow, several, table_texts
from tcl.data.sources.folders import is_image
from tcl.data.storage.open import member_reference
from tcl.data.storage.tar import Damaged, Member, NotATar, tar_members
from tcl.data.tables.json_stream import MAX_ROW_BYTES, parse
from tcl.errors import DataError


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
                sample = _Sample(name, key, [*group], file, columns, warnings)
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


class _Sample:
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
