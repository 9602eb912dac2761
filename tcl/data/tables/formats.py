"""What files of image-text data hold, row by row and with the place of each row.

`.json`: a list of objects, or an object that holds captions, see `tcl.data.tables.coco`. `.jsonl`: one object per
line. `.csv`, `.tsv`: a header, then one row per line. `.token`: captions of Flickr30k. All in UTF-8, with or without
byte order mark. `.parquet`: its rows. A folder: its images. Every file is read as a stream.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.tables.coco import object_rows
from tcl.data.tables.csv_lines import table_lines
from tcl.data.tables.json_stream import MAX_ROW_BYTES, json_list, not_utf8, parse
from tcl.errors import DataError, reason_of
from tcl.files.names import natural_key

IMAGE_KEYS = ("image", "image_path", "filepath", "file_name", "path")
"""Names under which a row may hold the path of its image; the first one that it has counts."""

CAPTION_KEYS = ("caption", "captions", "text")
"""Names under which a row may hold its caption or list of captions."""

Row = tuple[str, Any]
"""The place within the file ("line 3"), and what stands there: an object, unless the file is wrong."""

_PARQUET_ROWS = 2048  # per step


class Reader(Protocol):
    """Gives the rows of a file; errors call it `name`, by default its path."""

    def __call__(self, path: Path, name: str | None = None) -> Iterator[Row]: ...


def read_json(path: Path, name: str | None = None) -> Iterator[Row]:
    """Rows of a JSON list, or of an object as COCO and Karpathy write it.

    Raises:
        DataError: the file is not JSON, not UTF-8, or neither; with the line.
    """
    if first_mark(path) == b"{":
        yield from object_rows(path, name or str(path))
        return
    with path.open("rb") as file:
        for number, row in enumerate(json_list(file, name or str(path)), 1):
            yield f"row {number}", row


def read_jsonl(path: Path, name: str | None = None) -> Iterator[Row]:
    """Rows of a file with one JSON object per line; empty lines are passed over.

    Raises:
        DataError: a line is not JSON or not UTF-8.
    """
    for number, line in numbered_lines(path, name):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError as error:
            reason = getattr(error, "msg", None) or error
            raise DataError(
                f"{name or path} line {number}: malformed JSON: {reason}", hint="write one JSON object per line"
            ) from error
        yield f"line {number}", row


def read_csv(path: Path, name: str | None = None) -> Iterator[Row]:
    """Rows of a `.csv` (commas) or any other table file (tabs), as objects with the names of its header.

    Cells beyond the header are under the key None.

    Raises:
        DataError: the file is malformed or not UTF-8, or a quote is not closed.
    """
    rows = table_lines(numbered_lines(path, name), "," if path.suffix.lower() == ".csv" else "\t", name or str(path))
    header = [column.strip() for column in next(rows, (0, []))[1]]
    for number, cells in rows:
        if not cells:
            continue
        row: dict[str | None, Any] = dict(zip_longest(header, cells[: len(header)]))
        if len(cells) > len(header):
            row[None] = cells[len(header) :]
        yield f"line {number}", row


def read_token(path: Path, name: str | None = None) -> Iterator[Row]:
    """Rows of Flickr30k's captions: lines `IMAGE#NUMBER<tab>CAPTION`, those of one image together.

    Raises:
        DataError: a line is something else, or not UTF-8.
    """
    place, image, captions = "", "", list[str]()
    for number, line in numbered_lines(path, name):
        if not line.strip():
            continue
        key, tab, caption = line.rstrip("\r\n").partition("\t")
        file_name, mark, index = key.rpartition("#")
        if not (tab and mark and index.isdecimal()):
            raise DataError(
                f"{name or path} line {number}: no caption of Flickr30k",
                hint="a line is IMAGE.jpg#0, a tab, the caption",
            )
        if file_name != image:
            if captions:
                yield place, {"image": image, "caption": captions}
            place, image, captions = f"line {number}", file_name, []
        captions.append(caption)
    if captions:
        yield place, {"image": image, "caption": captions}


def read_parquet(path: Path, name: str | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, without the columns of bytes that it may have.

    Raises:
        DataError: the file is malformed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [field.name for field in file.schema_arrow if not _has_bytes(field.type)]
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _malformed_parquet(error, name or str(path)) from error


def parquet_columns(path: Path, name: str | None = None) -> dict[str, str]:
    """Columns of a Parquet file that `read_parquet` gives, and the others, each with its type.

    Raises:
        DataError: the file is malformed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {field.name: "bytes" if _has_bytes(field.type) else str(field.type) for field in pq.read_schema(path)}
    except (pa.ArrowException, OSError) as error:
        raise _malformed_parquet(error, name or str(path)) from error


READERS: dict[str, Reader] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".token": read_token,
}
"""The reader of each suffix."""


def numbered_lines(path: Path, name: str | None = None) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, counted from 1, each with its line end.

    Raises:
        DataError: a line is not UTF-8, or too long to be one.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES), b""), 1):
            if len(line) == MAX_ROW_BYTES:
                raise DataError(
                    f"{name or path} line {number}: longer than {MAX_ROW_BYTES >> 20} MB",
                    hint="are its line ends missing?",
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(name or str(path), number) from error


def first_mark(path: Path) -> bytes:
    """The first byte of a text that is no space; it tells a JSON list from an object."""
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def images_below(folder: Path) -> list[str]:
    """Paths of the images in a folder and its sub-folders, relative to it, in natural order; hidden ones left out."""
    names = []
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                names.append(Path(parent, name).relative_to(folder).as_posix())
    return sorted(names, key=natural_key)


def _malformed_parquet(error: Exception, name: str) -> Exception:
    if isinstance(error, OSError) and error.errno:  # it cannot be read; Arrow's own complaints have no number
        return error
    return DataError(
        f"{name}: malformed Parquet: {reason_of(error)}",
        hint="is it another format, or was it not written to its end?",
    )


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
