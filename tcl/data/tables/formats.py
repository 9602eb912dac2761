"""What files of image-text data hold, row by row and with the place of each row.

`.json`: a list of objects, or an object that holds captions, see `tcl.data.tables.coco`. `.jsonl`: one object per
line. `.csv`, `.tsv`: a header, then one row per line. `.token`: captions of Flickr30k. All in UTF-8, with or without
byte order mark. `.parquet`: its rows. Every file is read as a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol

from tcl.data.tables.coco import object_rows
from tcl.data.tables.csv_lines import separator, table_lines
from tcl.data.tables.json_stream import MAX_ROW_BYTES, json_list, not_utf8, parse
from tcl.data.tables.parquet import read_parquet
from tcl.errors import DataError

Row = tuple[str, Any]
"""The place within the file ("line 3"), and what stands there: an object, unless the file is wrong."""


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
    """Rows of a table of text, as objects with the names of its header; what is between the cells is seen from that.

    Cells beyond the header are under the key None.

    Raises:
        DataError: the file is malformed or not UTF-8, or a quote is not closed.
    """
    lines = numbered_lines(path, name)
    first = next(lines, (1, ""))
    check_line_ends(first[1], name or str(path))
    mark = separator(first[1], "," if path.suffix.lower() == ".csv" else "\t")
    if first[1].rstrip("\r\n") != f"sep={mark}":  # Excel's first line of such a file
        lines = chain([first], lines)
    rows = table_lines(lines, mark, name or str(path))
    header = [column.strip() for column in next(rows, (0, []))[1]]
    for column in header:
        if column and header.count(column) > 1:
            raise DataError(f"{name or path}: two columns are called {column}", hint="give one another name")
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


def check_line_ends(line: str, name: str) -> None:
    """Refuse a list or table that seems to be one line, because its lines end in another way.

    Args:
        line: its first one.
        name: of the file, for errors.

    Raises:
        DataError: they end in CR alone, or in NUL.
    """
    if "\0" in line:
        raise DataError(f"{name}: what is in it ends in NUL, and not in a line end", hint="tr '\\0' '\\n' < OLD > NEW")
    if "\r" in line.rstrip("\r") and "\n" not in line:
        raise DataError(f"{name}: its lines end in CR alone, as on old Macs", hint="tr '\\r' '\\n' < OLD > NEW")


def first_mark(path: Path) -> bytes:
    """The first byte of a text that is no space; it tells a JSON list from an object."""
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
