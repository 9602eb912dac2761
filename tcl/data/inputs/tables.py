"""Records of tables and shards, and of the texts in a folder, as inputs of `tcl embed`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tcl.data.inputs.inputs import Inputs, Kind
from tcl.data.inputs.unique_ids import InputRow, gather, qualified, refuse_repeats
from tcl.data.sources.columns import Columns
from tcl.data.sources.find import DataFile, Source
from tcl.data.sources.folders import Progress
from tcl.data.sources.record import Record, Skipped, Stored, first_value, resolve
from tcl.data.sources.records import read_table, records
from tcl.data.tables.parquet import parquet_columns
from tcl.errors import DataError, UsageError, without_secrets
from tcl.files.remote import is_url

WARNINGS_KEPT = 20


def inputs_of(
    found: Source, kind: Literal["auto", "image", "text"], columns: Columns, images: str | None, progress: Progress
) -> Inputs:
    """Inputs of a source; arguments and errors as of `tcl.data.inputs.listing.list_inputs`."""
    if found.weight != 1:
        raise UsageError(f"{found.text}: every input is embedded once", hint="leave out what stands behind the @")
    if kind != "text" and any(os.path.isdir(file.name) for file in found.files):
        raise UsageError(f"{found.text}: a folder is not read as a table", hint="name the files in it")
    root = _root(found)
    kind = _kind_of(found.files[0], columns) if kind == "auto" else kind
    _check_columns_apply(found.text, kind, columns, any(file.suffix == ".tar" for file in found.files))
    columns = replace(columns, kind=kind)
    counts, given = Counter[str](), [False]

    def rows(skipped: list[Skipped]) -> Iterator[InputRow]:
        for item in records(found, columns, images, root):
            if isinstance(item, Skipped):
                skipped.append(item._replace(reason=f"{item.reason}; left out"))
                continue
            if item.problem and kind == "text":
                skipped.append(Skipped(item.where, item.problem))
            for row in _inputs(item, kind, columns):
                counts[item.file] += 1
                given[0] |= row.given
                yield row

    skipped: list[Skipped] = []
    ids, values = gather(rows(skipped), progress)
    if given[0]:
        refuse_repeats(found.text, ids, lambda: rows([]))
    else:
        ids = qualified(ids, [(file.name, counts[file.name]) for file in found.files])
    origin = "\n".join(f"{file.name} {file.stamp}" for file in found.files if is_url(file.name))
    return Inputs(kind, ids, values, root, warnings_of(skipped), origin)


def _inputs(record: Record, kind: Kind, columns: Columns) -> Iterator[InputRow]:
    """The inputs of one record; without a value one that will fail, so that it is listed."""
    if not isinstance(record.row, dict):
        raise DataError(f"{record.where}: expected an object, found {type(record.row).__name__}")
    given, where = columns.row_id(record.row), record.where
    if kind == "text":
        values = [""] if record.problem else record.texts(columns.text_keys) or [""]
        row_id = given or record.key
    else:
        image = first_value(record.row, columns.image_keys)
        images = image if isinstance(image, list) else [] if image is None else [image]
        if isinstance(image, Stored) or (images and isinstance(images[0], Stored)):
            for name, reference in [image] if isinstance(image, Stored) else images:
                yield InputRow(
                    given or name or record.key, reference, f"{record.file} {name or record.place}", bool(given)
                )
            return
        names = [str(name) for name in images]
        row_id = given or (without_secrets(names[0]) if len(names) == 1 else record.key)
        values = [resolve(name, record.base) for name in names] or [""]
    for number, value in enumerate(values, 1):
        yield InputRow(row_id if len(values) == 1 else f"{row_id}#{number}", value, where, given is not None)


def _root(source: Source) -> Path:
    """The folder that the paths of a source are given from."""
    local = [os.path.dirname(file.location) for file in source.files if not is_url(file.name)]
    if len(source.files) == 1 and local:
        return Path(source.files[0].name).parent
    return Path(os.path.commonpath(local)) if local else Path()


def _kind_of(file: DataFile, columns: Columns) -> Kind:
    """Whether a file holds images or texts, seen from its columns; shards hold images.

    Raises:
        UsageError: the user named a column of each kind.
        DataError: it is malformed, or has no rows.
    """
    if file.suffix == ".tar":
        return "text" if columns.text else "image"
    if file.suffix == ".parquet":
        return columns.kind_of(parquet_columns(file.local(), file.name), file.name)
    first = next(read_table(file), None)
    if first is None:
        raise DataError(f"{file.name}: holds no rows", hint="is it the right file?")
    place, row = first
    if not isinstance(row, dict):
        raise DataError(f"{file.name} {place}: expected an object, found {type(row).__name__}")
    return columns.kind_of(filter(None, row), file.name)


def _check_columns_apply(source: str, kind: str, columns: Columns, shard: bool) -> None:
    """Refuse a named column that would change nothing.

    Raises:
        UsageError: it would not.
    """
    if shard and columns.image:
        raise UsageError(f"{source}: a shard has no image column", hint="leave out --image-column")
    other = columns.text if kind == "image" else columns.image
    if other and not (columns.image and columns.text):
        wrong = "text" if kind == "image" else "image"
        raise UsageError(f"{source}: --{wrong}-column says nothing about {kind}s", hint=f"add --kind {wrong}")


def warnings_of(skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """The first of what was left out, one line each."""
    lines = [without_secrets(f"{place}: {reason}") for place, reason in skipped[:WARNINGS_KEPT]]
    more = len(skipped) - WARNINGS_KEPT
    return (*lines, f"and {more} more such places") if more > 0 else tuple(lines)
