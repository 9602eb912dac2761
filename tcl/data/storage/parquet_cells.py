"""Images that stand in a column of a Parquet file: `FILE!COLUMN[ROW]`, rows counted from 0.

A cell holds the bytes of an image file, or `{"bytes", "path"}` as Hugging Face writes it; where the bytes are missing
there, the path counts, from the folder of the file. Rows are read as a stream: whoever asks for them more or less in
order has every page read once, and memory holds a few of them. How large a page is, the writer of the file decided.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from threading import Lock
from typing import Any, BinaryIO

from tcl.data.storage.open import NOT_A_FILE, blocks, open_binary, shard_of
from tcl.files.remote import fetch_named, is_url, url_path

_CELL = re.compile(r"(.+\.parquet(?:\?[^!]*)?)!([^!]*)\[([0-9]+)\]", re.DOTALL | re.IGNORECASE)
_SPECIAL = re.compile(r"[!%\x00-\x1f\x7f]")
_OPEN_COLUMNS = 2  # per process: at a seam of two files threads read both
_CURSORS = 2  # per column: places that are read on from
_STEP_BYTES = 4 << 20
_STEP_ROWS = 256
_KEPT_ROWS = 32  # behind the newest row, at least: threads ask a little out of order
_BUFFER_BYTES = 1 << 20

_opening = Lock()


def cell_reference(file: str, column: str, row: int) -> str:
    """The reference under which `open_image` finds a cell.

    Args:
        file: path or URL, ending in `.parquet`.
        column: its name.
        row: from 0, over the whole file.
    """
    return f"{file}!{_SPECIAL.sub(lambda found: f'%{ord(found[0]):02X}', column)}[{row}]"


def container_of(reference: str) -> str:
    """The table or shard that a reference names a cell or member of; empty where it names none."""
    cell = _CELL.fullmatch(reference)
    return cell[1] if cell else shard_of(reference)


def open_image(reference: str) -> BinaryIO:
    """Open a cell, or whatever else `tcl.data.storage.open.open_binary` knows, for reading, seekable.

    Raises:
        OSError: it is not there, cannot be read, or is empty.
        UsageError: no package for its URL is installed.
    """
    cell = _CELL.fullmatch(reference)
    if cell is None:
        return open_binary(reference)
    file = cell[1]
    path = str(fetch_named(file)) if is_url(file) else file
    status = os.stat(path)
    if blocks(path):
        raise OSError(f"{file} is {NOT_A_FILE}")
    column = re.sub("%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), cell[2])
    with _opening:  # or several threads would open the same
        opened = _column(path, status.st_size, status.st_mtime_ns, column)
    value = opened.read(int(cell[3]))
    if isinstance(value, dict):
        if not value.get("bytes") and value.get("path"):
            beside = _beside(file, value["path"])
            if blocks(beside):
                raise OSError(f"{beside} is {NOT_A_FILE}")
            return open_binary(beside)
        value = value.get("bytes")
    if not value:
        raise OSError("the cell is empty")
    if not isinstance(value, bytes):
        raise OSError(f"the cell holds no image but {type(value).__name__}")
    return BytesIO(value)


def _beside(file: str, path: str) -> str:
    folder = url_path(file).rpartition("/")[0] if is_url(file) else os.path.dirname(file)
    return path if is_url(path) else os.path.join(folder, path)


class _Cursor:
    """A place in a row group, and the rows before it that are kept."""

    def __init__(self, path: str, column: str, group: int, first: int) -> None:
        import pyarrow.parquet as pq

        self.group = group
        self._end = first
        self._kept: deque[tuple[int, Any]] = deque()  # first row, and the values from there on
        # Read ahead, a whole row group is in memory: often hundreds of megabytes.
        file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        about = file.metadata.row_group(group)
        size = sum(
            chunk.total_uncompressed_size
            for chunk in map(about.column, range(about.num_columns))
            if chunk.path_in_schema.split(".")[0] == column.split(".")[0]
        )
        step = max(1, min(_STEP_ROWS, _STEP_BYTES * about.num_rows // max(size, 1)))
        self._batches = file.iter_batches(step, row_groups=[group], columns=[column], use_threads=False)

    @property
    def first(self) -> int:
        """The first row that can still be read."""
        return self._kept[0][0] if self._kept else self._end

    def read(self, row: int) -> Any:
        while row >= self._end:
            values = next(self._batches).column(0)
            self._kept.append((self._end, values))
            self._end += len(values)
            while len(self._kept) > 2 and self._kept[1][0] + _KEPT_ROWS <= min(row, self._end):
                self._kept.popleft()
        first, values = next(item for item in reversed(self._kept) if item[0] <= row)
        return values[row - first].as_py()


class _Column:
    """One column of a file; any thread may read."""

    def __init__(self, path: str, column: str) -> None:
        import pyarrow.parquet as pq

        self._path = path
        self._name = column
        self._lock = Lock()
        self._cursors: list[_Cursor] = []  # the latest last
        metadata = pq.read_metadata(path)
        if column not in metadata.schema.to_arrow_schema().names:
            raise OSError(f"{path} has no column {column}")
        self._ends = list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))

    def read(self, row: int) -> Any:
        import pyarrow as pa

        group = bisect_right(self._ends, row)
        if group == len(self._ends):
            raise OSError(f"{self._path} has no row {row}")
        with self._lock:
            try:
                return self._cursor(group, row).read(row)
            except (pa.ArrowException, OSError, StopIteration) as error:
                self._cursors.clear()
                raise _unreadable(self._path, error) from error

    def _cursor(self, group: int, row: int) -> _Cursor:
        usable = [cursor for cursor in self._cursors if cursor.group == group and cursor.first <= row]
        if usable:
            cursor = max(usable, key=lambda cursor: cursor.first)
            self._cursors.remove(cursor)
        else:
            cursor = _Cursor(self._path, self._name, group, self._ends[group - 1] if group else 0)
        self._cursors = [*self._cursors[1 - _CURSORS :], cursor]
        return cursor


@lru_cache(_OPEN_COLUMNS)
def _column(path: str, size: int, modified: int, name: str) -> _Column:
    """The column of a file as it is now: one that was written anew has another size or time."""
    import pyarrow as pa

    try:
        return _Column(path, name)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> OSError:
    if isinstance(error, OSError) and error.errno:  # Arrow's own complaints have no number
        return error
    return OSError(f"{path}: malformed Parquet: {' '.join(str(error).split()) or 'it ends too early'}")
