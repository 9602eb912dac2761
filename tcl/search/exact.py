"""Exact search in the vectors that `tcl embed` wrote, streamed from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError
from tcl.vectors.reader import VectorFile

QUERIES_AT_ONCE = 256
ROWS_AT_ONCE = 65536  # whose scores are kept until the best are picked


Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows of a query's hits and their scores, best first."""


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        row: of the vectors, from 0; None in a table, whose rows have no order.
        id: of the input there.
        score: cosine with the query.
        text: the input itself, where it is a text.
        path: of the image, relative to the source, where that is not its id.
        match: probability that query and input belong together, by the fusion encoder; None unless re-ranked.
        logit: of a match, which orders re-ranked hits.
        unread: why the fusion encoder could not look at it: its image has gone, or its kept tokens are damaged.
    """

    row: int | None
    id: str
    score: float
    text: str | None = None
    path: str | None = None
    match: float | None = None
    logit: float | None = None
    unread: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Collection(Protocol):
    """Vectors that can be searched.

    Attributes:
        name: for messages.
        kind: what was embedded, `image` or `text`.
        root: folder that relative image paths start from.
        dim: width E of a vector.
        files: that must not be overwritten while they are searched.
    """

    name: str
    kind: str
    root: Path
    dim: int
    files: list[Path]

    def __len__(self) -> int: ...

    def check_model(self, model_hash: str) -> None:
        """Raises UsageError when another model made the vectors."""
        ...

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        """The nearest inputs to each of the L2-normalised queries [Q, E], best first."""
        ...

    def tokens(self, hits: Sequence[Hit]) -> NDArray[np.float16] | None:
        """The image encoder's last states of the hits [n, T, W], where they were kept."""
        ...


class ExactCollection:
    """Every vector is compared with every query.

    Args:
        vectors: to search in.
        centre: compare what is left of vectors and queries without the collection's mean, normalised again.
    """

    def __init__(self, vectors: VectorFile, centre: bool = False) -> None:
        self.vectors, self.centre = vectors, centre
        self.name, self.kind, self.dim = str(vectors.path), vectors.kind, vectors.dim
        self.root = Path(str(vectors.meta.get("root", "")))
        self.files = vectors.belongings

    def __len__(self) -> int:
        return len(self.vectors)

    def check_model(self, model_hash: str) -> None:
        """See `Collection`."""
        self.vectors.check_model(model_hash)

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        """The nearest rows to each query, exactly; of equal scores the earlier row comes first.

        Args:
            queries: L2-normalised vectors [Q, E].
            top: hits per query, fewer when there are fewer rows.

        Raises:
            DataError: the vectors hold a value that is not finite, or are of another width.
        """
        check_width(self, queries)
        found: list[list[Hit]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            nearest = self._nearest(queries[start : start + QUERIES_AT_ONCE], min(top, len(self)))
            found += make_hits(self.vectors, [(best.rows, best.scores) for best in nearest])
        return found

    def tokens(self, hits: Sequence[Hit]) -> NDArray[np.float16] | None:
        """See `Collection`."""
        return self.vectors.tokens([hit.row for hit in hits if hit.row is not None])

    def _nearest(self, queries: NDArray[np.float32], top: int) -> list[_Best]:
        best = [_Best(top) for _ in queries]
        scores = np.empty((len(queries), min(ROWS_AT_ONCE, len(self))), np.float32)
        score = _Centred(queries, self.vectors.mean) if self.centre else _Plain(queries)
        first = filled = 0
        for start, code, stored in self.vectors.blocks(min(self.vectors.rows_at_once, ROWS_AT_ONCE)):
            if filled + len(stored) > scores.shape[1]:
                _keep(best, first, scores[:, :filled])
                first, filled = start, 0
            block = score(code, stored)
            if not np.isfinite(block).all():
                self.vectors.check_finite(start, code.floats(stored))
            scores[:, filled : filled + len(stored)] = block
            filled += len(stored)
        _keep(best, first, scores[:, :filled])
        return best


def make_hit(vectors: VectorFile, row: int, score: float) -> Hit:
    """A hit with what is known about its row."""
    record = vectors.record(row)
    return Hit(row, str(record["id"]), score, record.get("text"), record.get("path"))


def make_hits(vectors: VectorFile, found: Sequence[Found]) -> list[list[Hit]]:
    """Hits of several queries, of rows and scores; each record is read once, in the order of the file."""
    rows = sorted({row for own, _ in found for row in own.tolist()})
    known = {row: make_hit(vectors, row, 0) for row in rows}
    return [
        [replace(known[row], score=score) for row, score in zip(own.tolist(), scores.tolist(), strict=True)]
        for own, scores in found
    ]


def check_width(collection: Collection, queries: NDArray[np.float32]) -> None:
    """Refuse queries of another width.

    Raises:
        DataError: naming both.
    """
    if queries.shape[1] != collection.dim:
        raise DataError(f"{collection.name}: vectors of {collection.dim} entries, the query has {queries.shape[1]}")


def rerank(hits: Sequence[Hit], logits: NDArray[np.float32]) -> list[Hit]:
    """Order hits by how well they match the query, as published: by the ITM logit, not by the cosine.

    Args:
        hits: of one query.
        logits: ITM logits (no match, match) of the hits [N, 2].

    Returns:
        The hits, best first, each with its probability and its logit of a match.
    """
    exact = np.asarray(logits, dtype=np.float64).reshape(-1, 2)
    probabilities = 1 / (1 + np.exp(np.clip(exact[:, 0] - exact[:, 1], -700, 700)))
    order = np.argsort(-exact[:, 1], kind="stable")
    return [replace(hits[i], match=float(probabilities[i]), logit=float(exact[i, 1])) for i in order]


class _Plain:
    """Cosines: vectors and queries have length 1."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self.queries = queries

    def __call__(self, code: Any, stored: NDArray[Any]) -> NDArray[np.float32]:
        return code.products(self.queries, stored)


class _Centred:
    """Cosines of what is left without the mean m: (v - m) q / |v - m|, where |v| = 1."""

    def __init__(self, queries: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
        left = queries - mean
        left /= np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
        self.queries = np.vstack([left, mean])
        self.offset = (left @ mean)[:, None]
        self.square = float(mean @ mean)

    def __call__(self, code: Any, stored: NDArray[Any]) -> NDArray[np.float32]:
        products = code.products(self.queries, stored)
        lengths = np.sqrt(np.maximum(1 + self.square - 2 * products[-1], 1e-12))
        return (products[:-1] - self.offset) / lengths


class _Best:
    """The best rows of one query so far, best first."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.rows = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float32)

    def add(self, first: int, scores: NDArray[np.float32]) -> None:
        """Rows from `first` on, which come after all rows so far: they lose against equal scores."""
        full = len(self.scores) == self.top
        candidates = np.flatnonzero(scores > self.scores[-1]) if full and self.top else np.arange(len(scores))
        if len(candidates) > self.top:
            values = scores[candidates]
            candidates = candidates[values >= np.partition(values, -self.top)[-self.top]]
        merged = np.concatenate([self.scores, scores[candidates]])
        order = np.argsort(-merged, kind="stable")[: self.top]
        self.rows = np.concatenate([self.rows, candidates + first])[order]
        self.scores = merged[order]


def _keep(best: Sequence[_Best], first: int, scores: NDArray[np.float32]) -> None:
    for query, line in zip(best, scores, strict=True):
        query.add(first, line)
