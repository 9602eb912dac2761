"""Tables and shards that `tcl embed` is pointed at, row by row. Imports no torch."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from tcl.data.scenes import scenes
from tcl.data.sources.columns import Columns, InputRow, several, table_texts
from tcl.data.sources.find import DataFile, Source
from tcl.data.storage.parquet_cells import cell_reference
from tcl.data.tables.formats import READERS, parquet_columns, read_parquet
from tcl.errors import DataError, UsageError, reason_of
from tcl.files.remote import is_url, url_path
from tcl.listing.shards import shard_rows

_PARQUET_ROWS = 2048  # per step


class Placed(NamedTuple):
    """A file of a source, and how images of it are named.

    Args:
        file: the file.
        container: itself, below the root of the inputs; or its URL.
        base: what relative paths in it start from, below the root; or a URL.
    """

    file: DataFile
    container: str
    base: str


def names_tables(source: str) -> bool:
    """Whether a source, perhaps with braces, wildcards, a condition, is called as tables or shards are."""
    name = re.sub(r"#[^#/]*=[^#]*$|@[0-9.]+$", "", source)
    return all(PurePosixPath(url_path(one)).suffix.lower() in (*READERS, ".tar") for one in _ends(name))


def _ends(name: str) -> list[str]:
    """Names as the braces at the end leave them: `x.{csv,tsv}` is called `.csv` and `.tsv`."""
    if not name.endswith("}") or "{" not in name:
        return [name]
    front, _, words = name[:-1].rpartition("{")
    return [front + word for word in words.split(",")]


def place(source: Source) -> tuple[list[Placed], Path]:
    """Files with their names below one root, and that root."""
    local = [os.path.dirname(file.location) for file in source.files if not is_url(file.name)]
    if len(source.files) == 1 and local:
        root = Path(source.files[0].name).parent
    else:
        root = Path(os.path.commonpath(local)) if local else Path()
    placed = []
    for file in source.files:
        if is_url(file.name):
            placed.append(Placed(file, file.name, url_path(file.name).rpartition("/")[0]))
        else:
            below = os.path.relpath(file.location, root.absolute())
            placed.append(Placed(file, below, os.path.dirname(below)))
    return placed, root


def resolve(image: str, base: str) -> str:
    """An image as a file in `base` names it: below the root, absolute, a URL or a reference."""
    image = image.removeprefix("file://")
    if not image or not base or image.startswith(scenes.PREFIX) or is_url(image):
        return image
    if is_url(base) and not image.startswith("/"):
        scheme, mark, path = base.partition("://")
        return scheme + mark + posixpath.normpath(posixpath.join(path, image))
    return os.path.join(base, image)


def kind_of(placed: Placed, columns: Columns) -> Literal["image", "text"]:
    """Whether a file holds images or texts, seen from its columns; shards hold images.

    Raises:
        UsageError: the user named a column of each kind.
        DataError: it is malformed, or has no rows.
    """
    name, path = placed.file.name, placed.file.local()
    if placed.file.suffix == ".tar":
        return "text" if columns.text else "image"
    if READERS[placed.file.suffix] is read_parquet:
        names: Sequence[str] = list(parquet_columns(path, name))
    else:
        first = next(READERS[placed.file.suffix](path, name), None)
        if first is None:
            raise DataError(f"{name}: holds no rows", hint="is it the right file?")
        names = list(_object(name, *first))
    return "image" if columns.kind_of(names, name) == "image" else "text"


def input_rows(placed: Placed, kind: str, columns: Columns, warnings: list[str]) -> Iterator[InputRow]:
    """Inputs of a file, in its order.

    Raises:
        UsageError: it has no such column.
        DataError: it is malformed or cannot be read.
    """
    file = placed.file
    try:
        path = file.local()
        if file.suffix == ".tar":
            yield from shard_rows(path, file.name, placed.container, kind, columns, warnings)
        elif READERS[file.suffix] is read_parquet:
            yield from _parquet_rows(path, placed, kind, columns)
        else:
            yield from _table_rows(path, placed, kind, columns)
    except OSError as error:
        reason = error.strerror or str(error)
        text = reason if file.name in reason else f"cannot read {file.name}: {reason}"
        raise DataError(text, hint="check that it is there and may be read") from error


def _table_rows(path: Path, placed: Placed, kind: str, columns: Columns) -> Iterator[InputRow]:
    name = placed.file.name
    for number, (where, row) in enumerate(READERS[placed.file.suffix](path, name), 1):
        row = _object(name, where, row)
        if number == 1:
            columns.check([key for key in row if key is not None], kind, f"{name} {where}")
        if columns.wants(row):
            values = table_texts(row, columns.keys(kind))
            yield from _inputs(row, values, number, f"{name} {where}", placed, kind, columns)


def _inputs(
    row: dict[str, Any], values: list[str], number: int, where: str, placed: Placed, kind: str, columns: Columns
) -> Iterator[InputRow]:
    """The inputs of one row; without a value one that will fail, so that it is listed."""
    given = columns.row_id(row)
    row_id = given or (values[0] if kind == "image" and len(values) == 1 else str(number))
    if kind == "image":
        values = [resolve(value, placed.base) for value in values]
    yield from several(row_id, values or [""], where, given is not None)


def _parquet_rows(path: Path, placed: Placed, kind: str, columns: Columns) -> Iterator[InputRow]:
    """Only the columns that count are read, and of images only where they stand."""
    name = placed.file.name
    found = parquet_columns(path, name)
    usable = {key: type for key, type in found.items() if kind == "image" or type != "bytes"}
    columns.check(list(usable), kind, name)
    keys = [key for key in columns.keys(kind) if key in usable]
    image = keys[0] if usable[keys[0]] == "bytes" else None  # a column of files, not of their paths
    wanted = [f"{image}.path"] if image else [key for key in keys if usable[key] != "bytes"]
    wanted += [columns.id or "id", *columns.condition[:1]] if columns.condition else [columns.id or "id"]
    for number, row in enumerate(_projected(path, name, wanted), 1):
        if not columns.wants(row):
            continue
        where = f"{name} row {number}"
        if image is None:
            yield from _inputs(row, table_texts(row, keys), number, where, placed, kind, columns)
            continue
        given = columns.row_id(row)
        row_id = given or (row.get(image) or {}).get("path") or str(number)
        yield InputRow(row_id, cell_reference(placed.container, image, number - 1), where, given is not None)


def _projected(path: Path, name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with only these columns or members of columns; those that are not there are passed over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            leaves = {file.schema.column(number).path for number in range(len(file.schema))}
            there = [
                column for column in columns if any(leaf == column or leaf.startswith(f"{column}.") for leaf in leaves)
            ]
            if not there:
                yield from ({} for _ in range(file.metadata.num_rows))
                return
            for batch in file.iter_batches(_PARQUET_ROWS, columns=there, use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{name}: malformed Parquet: {reason_of(error)}", hint="was it written to its end?") from error


def _object(name: str, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{name} {where}: expected an object, found {type(row).__name__}")
    return row


def all_rows(files: Sequence[Placed], kind: str, columns: Columns, warnings: list[str]) -> Iterator[InputRow]:
    """Inputs of all files."""
    return chain.from_iterable(input_rows(placed, kind, columns, warnings) for placed in files)


def check_columns_apply(source: str, kind: str, columns: Columns, shard: bool) -> None:
    """Refuse a named column that would change nothing.

    Raises:
        UsageError: it would not.
    """
    if shard and columns.image:
        raise UsageError(f"{source}: a shard has no image column", hint="leave out --image-column")
    other = columns.text if kind == "image" else columns.image if kind == "text" else None
    if other and not (columns.image and columns.text):
        wrong = "text" if kind == "image" else "image"
        raise UsageError(f"{source}: --{wrong}-column says nothing about {kind}s", hint=f"add --kind {wrong}")
