"""What files of image-text data hold, row by row and with the place of each row. Imports no torch.

`.json`: a list of objects. `.jsonl`: one object per line. `.csv`, `.tsv`: a header, then one row per line. All in
UTF-8, with or without byte order mark. A folder: its images.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tcl.data.images import IMAGE_SUFFIXES, natural_key
from tcl.errors import DataError

IMAGE_KEYS = ("image", "image_path", "filepath", "file_name", "path")
"""Names under which a row may hold the path of its image; the first one that it has counts."""

CAPTION_KEYS = ("caption", "captions", "text")
"""Names under which a row may hold its caption or list of captions."""

Row = tuple[str, Any]
"""The place within the file ("line 3"), and what stands there: an object, unless the file is wrong."""


def read_json(path: Path) -> Iterator[Row]:
    """Rows of a JSON list.

    Raises:
        DataError: the file is not JSON, not UTF-8, or not a list; with the line.
    """
    data = path.read_bytes()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data.count(b"\n", 0, error.start) + 1) from error
    except json.JSONDecodeError as error:
        hint = "one object per line? then name the file .jsonl" if error.msg == "Extra data" else "repair that line"
        raise DataError(f"{path} line {error.lineno}: malformed JSON: {error.msg}", hint=hint) from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected a list of rows, found {type(rows).__name__}",
            hint='write [{"image": ..., "caption": ...}, ...]',
        )
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file with one JSON object per line; empty lines are passed over.

    Raises:
        DataError: a line is not JSON or not UTF-8.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} line {number}: malformed JSON: {error.msg}", hint="write one JSON object per line"
            ) from error
        yield f"line {number}", row


def read_csv(path: Path) -> Iterator[Row]:
    """Rows of a `.csv` (commas) or any other table file (tabs), as objects with the names of its header.

    Cells beyond the header are under the key None.

    Raises:
        DataError: the file is malformed or not UTF-8.
    """
    line_number = 0

    def lines() -> Iterator[str]:
        nonlocal line_number
        for line_number, line in numbered_lines(path):  # noqa: B007
            yield line

    reader = csv.DictReader(lines(), delimiter="," if path.suffix.lower() == ".csv" else "\t")
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for row in reader:
            yield f"line {line_number}", row
    except csv.Error as error:
        raise DataError(f"{path} line {line_number}: malformed CSV: {error}", hint="repair that line") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
}
"""The reader of each suffix."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, counted from 1, each with its line end.

    Raises:
        DataError: a line is not UTF-8.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number) from error


def images_below(folder: Path) -> list[str]:
    """Paths of the images in a folder and its sub-folders, relative to it, in natural order; hidden ones left out."""
    names = []
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                names.append(Path(parent, name).relative_to(folder).as_posix())
    return sorted(names, key=natural_key)


def _not_utf8(path: Path, line: int) -> DataError:
    return DataError(f"{path} line {line}: not UTF-8 text", hint="save the file in UTF-8")
