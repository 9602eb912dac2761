"""Near-duplicates: groups of inputs whose vectors are closer than a threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.search.exact import Hit, make_hit
from tcl.vectors.reader import VectorFile

BLOCK_ROWS = 2048  # compared with as many at once: of their cosines at most 16 MB are in memory
ROUNDING = 1e-6  # of a cosine: two equal vectors may have a little less than 1


@dataclass(frozen=True)
class Group:
    """Inputs that are linked by pairs closer than the threshold.

    Attributes:
        kept: the first of them.
        duplicates: the others in the order of rows; `score` is the cosine with the one that is kept.
    """

    kept: Hit
    duplicates: list[Hit]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        kept = {name: value for name, value in self.kept.to_json().items() if name != "score"}
        return {"kept": kept, "duplicates": [hit.to_json() for hit in self.duplicates]}


def find_groups(
    vectors: VectorFile, threshold: float, progress: Callable[[int], object] = lambda rows: None
) -> NDArray[np.int64]:
    """Compare every two vectors, block by block; in memory are two blocks, their cosines, and a number per row.

    Args:
        vectors: to compare.
        threshold: cosine from which two are near-duplicates.
        progress: called with the number of rows done since the last call.

    Returns:
        of each row, the first row that it is linked to, directly or through others [N].

    Raises:
        DataError: a value is not finite.
    """
    vectors.mean  # noqa: B018  looks at every value first, so that hours of work do not end at the last row
    first: NDArray[np.int64] = np.arange(len(vectors))
    for start, block in vectors.floats(BLOCK_ROWS):
        queries = _unit(block)
        for other, candidates in vectors.floats(BLOCK_ROWS, start):
            rows, columns = np.nonzero(queries @ _unit(candidates).T >= threshold - ROUNDING)
            rows, columns = rows + start, columns + other
            _join(first, rows[rows < columns], columns[rows < columns])
        progress(len(block))
    return _roots(first, first)


def groups_of(vectors: VectorFile, first: NDArray[np.int64]) -> Iterator[Group]:
    """The groups that `find_groups` found, with what is known about their rows, in the order of the kept ones."""
    order = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else []:
        if len(rows) > 1:
            kept = _unit(vectors.take([int(rows[0])]))[0]
            blocks = (rows[start : start + BLOCK_ROWS].tolist() for start in range(0, len(rows), BLOCK_ROWS))
            scores = np.concatenate([_unit(vectors.take(block)) @ kept for block in blocks])
            hits = [make_hit(vectors, int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
            yield Group(hits[0], hits[1:])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _roots(first: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of the group of each of `rows`."""
    found = first[rows]
    while not np.array_equal(found, further := first[found]):
        found = further
    return found


def _join(first: NDArray[np.int64], rows: NDArray[np.int64], others: NDArray[np.int64]) -> None:
    """Make one group of the two groups of each pair."""
    while len(rows):
        rows, others = _roots(first, rows), _roots(first, others)
        apart = rows != others
        rows, others = rows[apart], others[apart]
        np.minimum.at(first, np.maximum(rows, others), np.minimum(rows, others))
