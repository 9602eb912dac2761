"""Vectors in fewer bytes, and what that costs in search.

| dtype | on disk | a value is |
|---|---|---|
| `float32`, `float16` | [N, E] | itself |
| `int8` | int8 [N, E] | the stored number times `scale[d]`: the largest magnitude in column d, / 127 |
| `binary` | uint8 [N, ceil(E / 8)], first column in the highest bit | 1 where the vector's is above 0, else -1 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float32", "float16", "int8", "binary"]
LEVELS = 127  # of int8 on each side of zero
RECALL_AT = 10
RECALL_QUERIES = 1000
_RECALL_PAIRS = 200_000_000  # queries x rows that are compared at most


def stored_width(dim: int, dtype: str) -> int:
    """Columns on disk of a vector of `dim` values."""
    return -(-dim // 8) if dtype == "binary" else dim


def stored_type(dtype: str) -> np.dtype[Any]:
    """The numbers on disk."""
    return np.dtype("uint8" if dtype == "binary" else dtype)


def int8_scale(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """What int8 numbers are multiplied by, from the largest magnitude of each column [E]."""
    return np.where(largest > 0, largest / LEVELS, 1).astype(np.float32)


def quantise(vectors: NDArray[np.float32], dtype: str, scale: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """Vectors [N, E] as they are stored.

    Args:
        vectors: float32.
        dtype: see the module's table.
        scale: of `int8`, [E].
    """
    if dtype == "int8":
        assert scale is not None
        return np.rint(vectors / scale).clip(-LEVELS, LEVELS).astype(np.int8)
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return np.asarray(vectors, dtype)


def quantise_each(vectors: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Vectors [N, E] of length 1 in fewer bytes, each by itself, so that those of two calls can be compared.

    As `quantise`, but for `int8`: there the largest magnitude of each vector becomes 127. What such numbers mean is a
    direction: divided by their length they are the vector again.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True) if dtype == "int8" else None
    return quantise(vectors, dtype, None if largest is None else int8_scale(largest))


def dequantise(
    stored: NDArray[Any], dtype: str, dim: int, scale: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Stored vectors as float32 [N, E] again; binary ones as -1 and 1."""
    if dtype == "int8":
        assert scale is not None
        return stored.astype(np.float32) * scale
    if dtype == "binary":
        return np.unpackbits(stored, axis=1, count=dim).astype(np.float32) * 2 - 1
    return stored.astype(np.float32)


def recall_kept(
    chunks: Callable[[], Iterable[NDArray[np.float32]]],
    rows: int,
    dtype: str,
    scale: NDArray[np.float32] | None = None,
) -> tuple[float, int]:
    """Of the 10 nearest rows by float32, the share that is among the 10 nearest by the stored vectors.

    Evenly spaced rows are the queries, as float32; a query does not find itself.

    Args:
        chunks: gives the collection in order, as float32 [n, E], each time it is called.
        rows: of the collection.
        dtype: of the stored vectors.
        scale: of `int8`.

    Returns:
        the share (1.0 where there is nothing to find), and the number of queries, at most 1,000.
    """
    top = min(RECALL_AT, rows - 1)
    if top < 1:
        return 1.0, 0
    count = max(1, min(RECALL_QUERIES, rows, _RECALL_PAIRS // rows))
    chosen = np.linspace(0, rows - 1, count).astype(np.int64)
    queries = _rows(chunks(), chosen)
    exact, stored = (_Nearest(count, top) for _ in range(2))
    start = 0
    for chunk in chunks():
        numbers = np.arange(start, start + len(chunk))
        own = (chosen >= start) & (chosen < start + len(chunk))
        again = dequantise(quantise(chunk, dtype, scale), dtype, chunk.shape[1], scale)
        for nearest, candidates in ((exact, chunk), (stored, again)):
            scores = queries @ candidates.T
            scores[own, chosen[own] - start] = -np.inf
            nearest.add(numbers, scores)
        start += len(chunk)
    found = sum(len(np.intersect1d(*nearest)) for nearest in zip(exact.rows, stored.rows, strict=True))
    return found / (count * top), count


class _Nearest:
    """The best rows of each query so far."""

    def __init__(self, queries: int, top: int) -> None:
        self.top = top
        self.rows = np.empty((queries, 0), np.int64)
        self.scores = np.empty((queries, 0), np.float32)

    def add(self, numbers: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Compare with rows `numbers` [n] by their scores [Q, n]; of equal scores the earlier row stays."""
        rows = np.hstack([self.rows, np.broadcast_to(numbers, scores.shape)])
        scores = np.hstack([self.scores, scores])
        if scores.shape[1] > self.top:
            last = np.partition(scores, -self.top)[:, -self.top, None]
            better, equal = scores > last, scores == last
            left = self.top - better.sum(axis=1, keepdims=True)
            best = better | (equal & (equal.cumsum(axis=1) <= left))
            rows, scores = (part[best].reshape(len(best), self.top) for part in (rows, scores))
        self.rows, self.scores = rows, scores


def _rows(chunks: Iterable[NDArray[np.float32]], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    found, start = [], 0
    for chunk in chunks:
        here = chosen[(chosen >= start) & (chosen < start + len(chunk))]
        found.append(chunk[here - start])
        start += len(chunk)
    return np.concatenate(found)
