"""Vectors of an unfinished job: raw float32 [N, E] in a file, each row at its own offset, in whatever order they come.

Tokens, where kept, stand in a second file of the same kind as float16 [N, T, W]. Imports no torch.
"""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_READ_BYTES = 512 << 20  # per call: no system reads more than 2 GB at once

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
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

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
