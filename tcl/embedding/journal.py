"""What of an embedding job is done: a line per finished batch, and the vectors that it speaks of.

    {"batch": 3, "crc": 12345, "rows": [[192, 60], [253, 3]], "failed": [[252, "no such file"]]}

The line is written after the vectors. Every process writes to a file of its own, and a new one at each start, so that
no line is ever continued that a killed process left half-written. Such a line is no JSON and does not count; nor does
a batch whose vectors have another CRC.

Vectors are raw float32 [N, E] in one file, each row at its own offset, in whatever order they come. Tokens, where kept,
stand in a second file of the same kind as float16 [N, T, W].
"""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcl.embedding.plan import BatchPlan
from tcl.files.json_object import parse_object

_READ_BYTES = 512 << 20  # per call: no system reads more than 2 GB at once

LINE = {"batch": int, "crc": int, "rows": [[int]], "failed": [[(int, str)]]}

Runs = list[tuple[int, int]]  # (first row, number of rows), in the order in which a batch holds them


class VectorStore:
    """Written to by several processes at once, at different rows.

    Args:
        folder: of the job.
        dim: width E of a vector.
        token_shape: (T, W) where tokens are kept.
    """

    def __init__(self, folder: Path, dim: int, token_shape: tuple[int, int] | None) -> None:
        self._vectors = _RowFile(folder / "vectors.f32", (dim,), np.dtype(np.float32))
        self._tokens: _RowFile | None = None
        if token_shape is not None:
            self._tokens = _RowFile(folder / "tokens.f16", token_shape, np.dtype(np.float16))

    def write(self, runs: Runs, vectors: NDArray[np.float32], tokens: NDArray[np.float16] | None) -> int:
        """Write the rows of a batch: vectors [B, E], tokens [B, T, W].

        Returns:
            their CRC-32.
        """
        checksum = self._vectors.write(runs, vectors, 0)
        if self._tokens is not None:
            assert tokens is not None
            checksum = self._tokens.write(runs, tokens, checksum)
        return checksum

    def checksum(self, runs: Runs) -> int | None:
        """The CRC-32 of what is on disk of a batch; None where it is not all there."""
        checksum = 0
        for file in (self._vectors, self._tokens):
            for start, count in runs if file is not None else ():
                content = file.read(start, count)  # type: ignore[union-attr]
                if content is None:
                    return None
                checksum = zlib.crc32(content, checksum)
        return checksum

    def vectors(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows from `start` up to `stop`, of which the last was written; those that never were hold anything.

        Raises:
            OSError: they cannot be read, or the file ends before.
        """
        return self._vectors.rows(start, stop)

    def tokens(self, start: int, stop: int) -> NDArray[np.float16] | None:
        """The tokens of these rows [n, T, W], where kept."""
        return None if self._tokens is None else self._tokens.rows(start, stop)

    def close(self) -> None:
        """Close the files."""
        for file in (self._vectors, self._tokens):
            if file is not None:
                os.close(file.handle)


class _RowFile:
    """Rows of equal size; no position is shared, so that threads and processes do not meet."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self._path, self.shape, self.dtype, self.size = path, shape, dtype, math.prod(shape) * dtype.itemsize
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def write(self, runs: Runs, values: NDArray[np.generic], checksum: int) -> int:
        content = np.ascontiguousarray(values, self.dtype).ravel().view(np.uint8).data
        for start, count in runs:
            part, content = content[: count * self.size], content[count * self.size :]
            checksum = zlib.crc32(part, checksum)
            offset = start * self.size
            while part:
                written = os.pwrite(self.handle, part, offset)
                part, offset = part[written:], offset + written
        return checksum

    def read(self, start: int, count: int) -> memoryview | None:
        content = memoryview(bytearray(count * self.size))
        return content if self._fill(content, start * self.size) else None

    def rows(self, start: int, stop: int) -> NDArray:
        values = np.empty((stop - start, *self.shape), self.dtype)
        if not self._fill(values.ravel().view(np.uint8).data, start * self.size):
            raise OSError(errno.EIO, f"{self._path.name} ends before row {stop}")
        return values

    def _fill(self, content: memoryview, offset: int) -> bool:
        """Read as much as `content` holds; whether there was as much. One call of the system may read less."""
        while content:
            count = os.preadv(self.handle, [content[:_READ_BYTES]], offset)
            if not count:
                return False
            content, offset = content[count:], offset + count
        return True


def runs_of(rows: Iterable[int]) -> Runs:
    """Neighbouring rows taken together: 3, 4, 5, 9 are (3, 3), (9, 1)."""
    runs: Runs = []
    for row in rows:
        if runs and row == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((int(row), 1))
    return runs


class Entry(NamedTuple):
    """A finished batch.

    Attributes:
        batch: its number.
        checksum: of its vectors.
        runs: its rows that have vectors, in the order in which these were computed.
        failed: its other rows, each with the reason.
    """

    batch: int
    checksum: int
    runs: Runs
    failed: list[tuple[int, str]]


class JournalWriter:
    """Appends to one journal.

    Args:
        folder: of the job.
        number: of the journal; nobody else has it.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._handle = os.open(_path(folder, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def append(self, entry: Entry) -> None:
        """Write a line, in one piece as far as the disk has room."""
        record = {"batch": entry.batch, "crc": entry.checksum, "rows": entry.runs, "failed": entry.failed}
        line = memoryview((json.dumps(record) + "\n").encode())
        while line:
            line = line[os.write(self._handle, line) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def next_number(folder: Path) -> int:
    """The first number that no journal has."""
    return max((number for number, _ in _journals(folder)), default=-1) + 1


class Ledger:
    """The batches that are done, by where their lines are: memory grows with the batches, not with the failures.

    Args:
        folder: of the job.
        plan: of its batches.
        store: leave out batches whose vectors on disk are not those that were journalled; None trusts the journals.
        failures: whether batches count in which an input failed; else they are to be done again.
    """

    def __init__(self, folder: Path, plan: BatchPlan, store: VectorStore | None = None, failures: bool = True) -> None:
        self.folder, self.plan = folder, plan
        self.done: NDArray[np.bool_] = np.zeros(plan.batches, bool)
        self._place = np.zeros((plan.batches, 2), np.int64)  # journal, offset
        for number, path in _journals(folder):
            for offset, line in _lines(path):
                entry = _parse(line, plan)
                if entry is None or (entry.failed and not failures):
                    continue
                if store is None or store.checksum(entry.runs) == entry.checksum:
                    self.done[entry.batch] = True
                    self._place[entry.batch] = number, offset

    @property
    def rows_done(self) -> int:
        """Inputs in finished batches."""
        full = int(self.done.sum()) * self.plan.batch_size
        last = self.plan.batches - 1
        return full - (self.plan.batch_size - self.plan.size_of(last) if self.done[last] else 0)

    def entries(self, batches: range) -> Iterator[Entry]:
        """The lines of batches that are all done."""
        for batch in batches:
            number, offset = self._place[batch]
            with _path(self.folder, number).open("rb") as file:
                file.seek(offset)
                entry = _parse(file.readline(), self.plan)
            assert entry is not None
            yield entry


def _path(folder: Path, number: int) -> Path:
    return folder / f"journal-{number}.jsonl"


def _journals(folder: Path) -> list[tuple[int, Path]]:
    found = ((path.stem.removeprefix("journal-"), path) for path in folder.glob("journal-*.jsonl"))
    return sorted((int(number), path) for number, path in found if number.isdigit())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _parse(line: bytes, plan: BatchPlan) -> Entry | None:
    """A line's entry; None where it is cut, or nothing that was ever written here."""
    try:
        record = parse_object(line, LINE)
        runs = [(start, count) for start, count in record["rows"]]
        failed = [(row, reason) for row, reason in record["failed"]]
        inside = all(start + count <= plan.rows for start, count in runs) and all(row < plan.rows for row, _ in failed)
    except (ValueError, TypeError):  # Malformed, or no pairs of a row and a reason
        return None
    entry = Entry(record["batch"], record["crc"], runs, failed)
    known = entry.batch < plan.batches
    whole = known and inside and sum(count for _, count in runs) + len(failed) == plan.size_of(entry.batch)
    return entry if whole else None
