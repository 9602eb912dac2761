"""The records of a source, whatever its kind. Pairs, inputs of `tcl embed` and labelled samples are made of these.

| file | a record |
|---|---|
| table | a row of it; of Parquet only the columns that are wanted, and of images in it only where they stand |
| `.tar` | a sample, see `tcl.data.sources.shards` |
| folder | an image with the lines of the `.txt` beside it; where none has one, a row of a `metadata` file in it |
| image | itself, likewise |
| `scenes:` | a rendered scene |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.scenes import scenes
from tcl.data.sources.columns import CELL_COLUMNS, IMAGE_COLUMNS, Columns
from tcl.data.sources.find import DataFile, Source
from tcl.data.sources.folders import files_in, images_of, is_metadata
from tcl.data.sources.record import Record, Skipped, Stored, first_value, unreadable
from tcl.data.sources.shards import shard_records
from tcl.data.storage.parquet_cells import cell_reference
from tcl.data.tables.formats import READERS, Row, numbered_lines, read_csv
from tcl.data.tables.parquet import parquet_columns, read_parquet
from tcl.errors import DataError
from tcl.files.named import allow
from tcl.files.remote import is_url, url_path

RowReader = Callable[[DataFile], Iterator[Row]]


def read_table(file: DataFile) -> Iterator[Row]:
    """Rows of a table by its suffix, each with its place."""
    return READERS[file.suffix](file.local(), file.name)


def records(
    source: Source,
    columns: Columns,
    images: str | None = None,
    root: Path | None = None,
    read: RowReader = read_table,
) -> Iterator[Record | Skipped]:
    """Records of a source that meet its condition, and what gives none.

    Args:
        source: see `tcl.data.sources.find`.
        columns: what is wanted.
        images: folder or URL that relative paths of images start from; by default the place of the file that names
            them.
        root: paths of files in records are absolute, or relative to this folder.
        read: gives the rows of a table other than Parquet.

    Raises:
        UsageError: a file lacks a column that the user named.
        DataError: a file is malformed or cannot be read, or no row meets the condition.
    """
    columns = replace(columns, condition=source.condition)
    if images is not None and is_url(images):
        allow(images)
    found = chain.from_iterable(_file_records(file, columns, images, root, read) for file in source.files)
    return _select(found, source.text, *source.condition) if source.condition else found


def _select(found: Iterator[Record | Skipped], source: str, column: str, value: str) -> Iterator[Record | Skipped]:
    values: set[str] = set()
    matched = False
    for item in found:
        if isinstance(item, Skipped):
            yield item
            continue
        cell = item.row.get(column) if isinstance(item.row, dict) else None
        if cell is not None and str(cell) == value:
            matched = True
            yield item
        elif cell is not None and len(values) < 20:
            values.add(str(cell))
    if not matched:
        there = f"its values: {', '.join(sorted(values))}" if values else f"no row has a column '{column}'"
        raise DataError(f"{source}: no row has {column}={value}", hint=there)


def _file_records(
    file: DataFile, columns: Columns, images: str | None, root: Path | None, read: RowReader
) -> Iterator[Record | Skipped]:
    if file.name.startswith(scenes.PREFIX):
        for reference, captions in scenes.scene_rows(file.name):
            yield _record(file.name, reference, reference, captions, columns, "")
        return
    location = file.location if root is None or is_url(file.name) else os.path.relpath(file.location, root.absolute())
    try:
        if os.path.isdir(file.name):
            yield from _folder_records(Path(file.name), columns)
        elif file.suffix in IMAGE_SUFFIXES:
            yield from _image_records([file.name], Path(), columns)
        elif file.suffix == ".tar":
            yield from shard_records(file.local(), file.name, location, columns)
        else:
            base = _parent(location) if images is None else images if is_url(images) else os.path.abspath(images)
            rows = _parquet_rows(file, location, columns) if file.suffix == ".parquet" else _rows(file, columns, read)
            for number, (place, row) in enumerate(rows, 1):
                problem = ""
                if isinstance(row, dict) and None in row:  # more cells than the header has names
                    problem = "more cells than columns (a comma in a text needs quotes around it)"
                yield Record(file.name, place, str(number), row, base, problem)
    except OSError as error:
        raise unreadable(file.name, error) from error


def _parent(location: str) -> str:
    return url_path(location).rpartition("/")[0] if is_url(location) else os.path.dirname(location)


def _rows(file: DataFile, columns: Columns, read: RowReader) -> Iterator[Row]:
    """Rows of a table, after a look at its columns: a missing one would fail in every row."""
    has_header = READERS[file.suffix] is read_csv
    for number, (place, row) in enumerate(read(file)):
        if not number and isinstance(row, dict) and (has_header or columns.kind in ("image", "text")):
            columns.check(list(filter(None, row)), file.name if has_header else f"{file.name} {place}")
        yield place, row


def _parquet_rows(file: DataFile, location: str, columns: Columns) -> Iterator[Row]:
    """Rows with the columns that count; in place of the bytes of an image, where they are."""
    path = file.local()
    found = parquet_columns(path, file.name)
    cells = columns.cells(found)
    unusable = {name for name, kind in found.items() if kind == "bytes"} - {*cells}
    columns.check([f"{name} (bytes)" if name in unusable else name for name in found], file.name)
    rows = read_parquet(path, file.name, columns.read(found, cells))
    if not cells:
        yield from rows
        return
    for number, (place, row) in enumerate(rows):
        paths = {cell: (row.pop(cell, None) or {}).get("path") for cell in cells}
        if columns.kind == "pair" and row.get("image_id") in (None, ""):
            row["image_id"] = first_value(row, IMAGE_COLUMNS)
        for cell, name in paths.items():
            if cell.lower() in CELL_COLUMNS:
                name = name or first_value(row, ("url", "image_url"))
            key = cell if columns.kind == "row" else columns.image_keys[0]
            row[key] = Stored(str(name or ""), cell_reference(location, cell, number))
        yield place, row


def _folder_records(folder: Path, columns: Columns) -> Iterator[Record | Skipped]:
    skipped: list[Skipped] = []
    an_image = images_of(folder)
    found = files_in(folder, lambda name: an_image(name) or is_metadata(name), skipped)
    yield from skipped
    names = [name for name in found if not is_metadata(name)]
    metadata = [name for name in found if is_metadata(name)]
    if not names:
        raise DataError(f"{folder}: no images in this folder", hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    if any((folder / name).with_suffix(".txt").is_file() for name in names):
        yield from _image_records(names, folder, columns)
    elif metadata:
        yield from _described_records(names, metadata, folder, columns)
    else:
        raise DataError(
            f"{folder}: none of its {len(names)} images has a caption file",
            hint=f"looked for .txt files of the same name, as {Path(names[0]).with_suffix('.txt')}; and metadata.csv",
        )


def has_texts(folder: Path) -> bool:
    """Whether there are texts beside the images of a folder."""
    an_image = images_of(folder)
    found = files_in(folder, lambda name: an_image(name) or is_metadata(name), [])
    return any(is_metadata(name) or (folder / name).with_suffix(".txt").is_file() for name in found)


def _image_records(names: list[str], folder: Path, columns: Columns) -> Iterator[Record | Skipped]:
    for name in names:
        image = folder / name
        sidecar = image.with_suffix(".txt")
        if sidecar.is_file():
            texts = [line.strip() for _, line in numbered_lines(sidecar) if line.strip()]
            yield _record(str(image), name, name, texts, columns, os.path.abspath(folder))
        else:
            yield Skipped(str(image), f"no {sidecar.name} beside it")


def _described_records(
    names: list[str], metadata: list[str], folder: Path, columns: Columns
) -> Iterator[Record | Skipped]:
    """Rows of the metadata files in a folder, and the images that none of them names."""
    named: set[str] = set()
    for table in metadata:
        for item in _file_records(DataFile(str(folder / table), ""), columns, None, None, read_table):
            if isinstance(item, Record) and isinstance(item.row, dict):
                image = first_value(item.row, columns.image_keys)
                named.add(item.reference(str(image)))
            yield item
    for name in names if columns.kind != "text" else ():
        if os.path.normpath(os.path.abspath(folder / name)) not in named:
            yield Skipped(str(folder / name), f"no row of {' or '.join(metadata[:3])} names it")


def _record(file: str, key: str, image: str, texts: list[str], columns: Columns, base: str) -> Record:
    row: dict[str, Any] = {columns.image_keys[0]: image, columns.text_keys[0]: texts}
    return Record(file, "", key, row, base)
