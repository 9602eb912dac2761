"""One file of vectors and what it says of each row, on disk until asked for."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, UsageError, reason_of
from tcl.files.json_object import Malformed, parse_object
from tcl.files.names import from_unicode
from tcl.vectors.files import AGAIN, TOKENS_CHECKSUM, sidecar

RECORD = ("id", "text", "path")  # what is known about a row
LINE = {"id": str, "text?": str, "path?": str, f"{TOKENS_CHECKSUM}?": int}
_SCAN_BYTES = 16 << 20  # searched for line ends at once
_ROW_GROUPS = 4  # of Parquet that stay in memory for single rows


class Part(Protocol):
    """One file of vectors.

    Attributes:
        path: of the file.
        width: numbers per row, as stored.
        dtype: of these numbers.
    """

    path: Path
    width: int
    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def blocks(self, rows: int, first: int = 0) -> Iterator[NDArray[Any]]:
        """All rows from `first` on, in order, as stored, at most `rows` at once [n, width]."""
        ...

    def take(self, rows: Sequence[int]) -> NDArray[Any]:
        """Some rows as stored [n, width]."""
        ...

    def record(self, row: int) -> dict[str, Any]:
        """Its id, and text or path where there is one."""
        ...

    def tokens_checksum(self, row: int) -> int | None:
        """Of its tokens, see `tcl.vectors.files.tokens_checksum`; None where none were kept."""
        ...


def open_part(path: Path) -> Part:
    """Open `.npy` or `.parquet`; nothing is read into memory yet.

    Raises:
        UsageError: a file that belongs to it is missing.
        DataError: damaged, or not vectors.
    """
    return NpyPart(path) if path.suffix == ".npy" else ParquetPart(path)


class NpyPart:
    """Vectors in a `.npy`, and their ids in a JSONL beside it; both are memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vectors = map_npy(path)
        if self.vectors.ndim != 2:
            raise DataError(f"{path}: holds {self.vectors.dtype} {self.vectors.shape}, not vectors [N, E]")
        self.width, self.dtype = int(self.vectors.shape[1]), self.vectors.dtype
        self.lines = Lines(belonging(path, "ids.jsonl"))
        if len(self.lines) != len(self.vectors):
            counts = f"vectors: {len(self.vectors)}, ids: {len(self.lines)}"
            raise DataError(f"{path}: files do not belong together: {counts}", hint=AGAIN)

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self, rows: int, first: int = 0) -> Iterator[NDArray[Any]]:
        for start in range(first, len(self.vectors), rows):
            yield self.vectors[start : start + rows]

    def take(self, rows: Sequence[int]) -> NDArray[Any]:
        return self.vectors[np.asarray(rows, np.int64)]

    def record(self, row: int) -> dict[str, Any]:
        return self.lines[row]

    def tokens_checksum(self, row: int) -> int | None:
        return self.lines.object(row).get(TOKENS_CHECKSUM)


class ParquetPart:
    """Vectors with their ids in a Parquet file, read by row group."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        try:
            self.file = parquet.ParquetFile(path, memory_map=True)
            kind = self.file.schema_arrow.field("vector").type
            self.width, self.dtype = int(kind.list_size), np.dtype(kind.value_type.to_pandas_dtype())
            self.file.schema_arrow.field("id")
            self._columns = [name for name in RECORD if name in self.file.schema_arrow.names]
        except Exception as error:  # a damaged schema makes pyarrow raise a dozen kinds
            raise DataError(f"{path}: not vectors of `tcl embed`: {reason_of(error)}") from error
        metadata = self.file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self._vectors = lru_cache(_ROW_GROUPS)(self._read_vectors)
        self._records = lru_cache(_ROW_GROUPS)(self._read_records)
        self._checksums = lru_cache(_ROW_GROUPS)(self._read_checksums)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int, first: int = 0) -> Iterator[NDArray[Any]]:
        for group, (begin, end) in enumerate(pairwise(self._starts.tolist())):
            if end > first:
                vectors = self._read_vectors(group)
                for start in range(max(first - begin, 0), len(vectors), rows):
                    yield vectors[start : start + rows]

    def take(self, rows: Sequence[int]) -> NDArray[Any]:
        found = np.empty((len(rows), self.width), self.dtype)
        for place in np.argsort(rows, kind="stable"):  # so that each row group is read once
            group, row = self._find(rows[place])
            found[place] = self._vectors(group)[row]
        return found

    def record(self, row: int) -> dict[str, Any]:
        group, place = self._find(row)
        table = self._records(group)
        try:
            values = {name: table[name][place].as_py() for name in self._columns}
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: damaged: row {row} is not UTF-8 text", hint=AGAIN) from error
        record = {name: from_unicode(value) if isinstance(value, str) else value for name, value in values.items()}
        if record.get("path") == record["id"]:
            del record["path"]  # said once, as in the JSONL
        return record

    def tokens_checksum(self, row: int) -> int | None:
        if TOKENS_CHECKSUM not in self.file.schema_arrow.names:
            return None
        group, place = self._find(row)
        checksum: int | None = self._checksums(group)[place].as_py()
        return checksum

    def _find(self, row: int) -> tuple[int, int]:
        """Row group, and row in it."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, row - int(self._starts[group])

    def _read_vectors(self, group: int) -> NDArray[Any]:
        column = self._read(group, ["vector"])["vector"]
        if len(column) != self._starts[group + 1] - self._starts[group]:
            raise DataError(f"{self.path}: damaged: row group {group} has {len(column)} rows", hint=AGAIN)
        if column.null_count:
            raise DataError(f"{self.path}: row group {group} has rows without a vector", hint=AGAIN)
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors: NDArray[Any] = flat.reshape(-1, self.width)
        return vectors

    def _read_records(self, group: int) -> Any:
        return self._read(group, self._columns)

    def _read_checksums(self, group: int) -> Any:
        return self._read(group, [TOKENS_CHECKSUM])[TOKENS_CHECKSUM]

    def _read(self, group: int, columns: list[str]) -> Any:
        import pyarrow as pa

        try:
            return self.file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: damaged or cut off: {reason_of(error)}", hint=AGAIN) from error


class Lines:
    """Rows of a JSONL file by number, parsed when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            empty = path.stat().st_size == 0
            self._content: bytes | mmap.mmap = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        content = np.frombuffer(self._content, np.uint8)
        starts = range(0, len(content), _SCAN_BYTES)
        ends = [np.flatnonzero(content[start : start + _SCAN_BYTES] == ord("\n")) + start for start in starts]
        return np.concatenate([np.empty(0, np.int64), *ends])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> dict[str, Any]:
        record = self.object(row)
        return {name: record.get(name) for name in RECORD}

    def object(self, row: int) -> dict[str, Any]:
        """All that the line says.

        Raises:
            DataError: it is malformed, or names no id.
        """
        start = int(self._ends[row - 1]) + 1 if row else 0
        try:
            return parse_object(self._content[start : int(self._ends[row])], LINE)
        except Malformed as error:
            raise DataError(f"{self.path} line {row + 1}: damaged: {error}", hint=AGAIN) from error


def belonging(path: Path, name: str) -> Path:
    """A file beside the vectors.

    Raises:
        UsageError: it is missing.
    """
    file = sidecar(path, name)
    if not file.is_file():
        raise UsageError(f"{file}: is missing; it belongs to {path}", hint="keep the files of `tcl embed` together")
    return file


def map_npy(path: Path) -> NDArray[Any]:
    """Map a `.npy` into memory.

    Raises:
        DataError: cut short, or no array of numbers.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or reason_of(error)}", hint=AGAIN) from error
    except Exception as error:  # of a dozen kinds, TokenError and ZeroDivisionError among them
        raise DataError(f"{path}: damaged or cut off, or no array of numbers", hint=AGAIN) from error
    if not isinstance(array, np.ndarray):  # an archive of arrays
        raise DataError(f"{path}: holds no array", hint=AGAIN)
    return array
