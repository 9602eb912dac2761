"""Exact search in the vectors that `tcl embed` wrote, and re-ranking of the best. Memory-mapped; imports no torch."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, UsageError
from tcl.vectors import SUFFIXES, sidecar

RECORD = ("id", "text", "path")  # what is known about a row
CHUNK_ROWS = 65536  # compared at once: 64 MB of float32 at 256 columns


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        row: of the vectors, from 0.
        id: of the input there.
        score: cosine with the query.
        text: the input itself, where it is a text.
        path: of the image, relative to the source, where that is not its id.
        match: probability that query and input belong together, by the fusion encoder; None unless re-ranked.
    """

    row: int
    id: str
    score: float
    text: str | None = None
    path: str | None = None
    match: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class VectorIndex:
    """Vectors, their ids and what is known about them; made by `VectorIndex.open`.

    Attributes:
        path: of the vectors.
        vectors: [N, E], on disk until read.
        meta: content of `.meta.json`.
    """

    def __init__(self, path: Path, vectors: NDArray[Any], records: _Lines | _Columns, meta: dict[str, Any]) -> None:
        self.path, self.vectors, self.meta = path, vectors, meta
        self._records = records

    @classmethod
    def open(cls, path: Path) -> VectorIndex:
        """Open `.npy` or `.parquet` vectors; nothing is read into memory yet.

        Raises:
            UsageError: no such file, not vectors, or a file that belongs to them is missing.
            DataError: damaged, or ids and vectors differ in number.
        """
        if path.suffix not in SUFFIXES:
            raise UsageError(f"{path}: not a file of vectors", hint="give the .npy or .parquet that `tcl embed` wrote")
        if not path.is_file():
            raise UsageError(f"{path}: no such file", hint=f"make it with `tcl embed SOURCE --out {path}`")
        meta = _read_meta(path)
        records: _Lines | _Columns
        if path.suffix == ".npy":
            vectors, records = _map_npy(path), _Lines.open(_belonging(path, "ids.jsonl"))
        else:
            vectors, records = _read_parquet(path)
        counts = {"vectors": len(vectors), "ids": len(records), "the count in its meta.json": meta.get("count")}
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{what}: {count}" for what, count in counts.items())
            raise DataError(f"{path}: files do not belong together: {found}", hint="run `tcl embed` again")
        return cls(path, vectors, records, meta)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def kind(self) -> str:
        """What was embedded: `image` or `text`."""
        return str(self.meta.get("kind", "image"))

    def check_model(self, model_hash: str) -> None:
        """Vectors of different models cannot be compared.

        Raises:
            UsageError: these were made by another model.
        """
        own = str(self.meta.get("model_hash"))
        if own != model_hash:
            raise UsageError(
                f"{self.path}: vectors of another model ({own[:12]}, this one is {model_hash[:12]})",
                hint="name the model they were made with by --model, or embed again with this one",
            )

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        """The nearest rows to each query, exactly; of equal scores the earlier row comes first.

        Args:
            queries: L2-normalised vectors [Q, E].
            top: hits per query, fewer when there are fewer rows.

        Raises:
            DataError: the index holds a value that is not finite, or vectors of another width.
        """
        if queries.shape[1] != self.vectors.shape[1]:
            raise DataError(
                f"{self.path}: vectors of {self.vectors.shape[1]} entries, the query has {queries.shape[1]}"
            )
        rows = np.empty((len(queries), 0), dtype=np.int64)
        scores = np.empty((len(queries), 0), dtype=np.float32)
        for start in range(0, len(self), CHUNK_ROWS):
            chunk = np.asarray(self.vectors[start : start + CHUNK_ROWS], dtype=np.float32)
            new = queries @ chunk.T
            if not np.isfinite(new).all():
                bad = start + int(np.flatnonzero(~np.isfinite(chunk).all(axis=1))[0])
                raise DataError(f"{self.path}: row {bad} is not finite", hint="embed again")
            numbers = np.broadcast_to(np.arange(start, start + len(chunk)), new.shape)
            rows, scores = _best(np.hstack([rows, numbers]), np.hstack([scores, new]), top)
        return [
            [self._hit(int(row), float(score)) for row, score in zip(rows[query], scores[query], strict=True)]
            for query in range(len(queries))
        ]

    def _hit(self, row: int, score: float) -> Hit:
        record = self._records[row]
        return Hit(row, str(record["id"]), score, record.get("text"), record.get("path"))


def rerank(hits: Sequence[Hit], match: Callable[[Sequence[Hit]], NDArray[np.float32]]) -> list[Hit]:
    """Order hits by how well they match the query, as published: by the ITM logit, not by the cosine.

    Args:
        hits: of one query.
        match: gives ITM logits [N, 2] (no match, match) of N hits.

    Returns:
        The hits, best first, each with its probability of a match.
    """
    if not hits:
        return []
    logits = np.asarray(match(hits), dtype=np.float64)
    probabilities = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    order = np.argsort(-logits[:, 1], kind="stable")
    return [replace(hits[i], match=float(probabilities[i])) for i in order]


def _best(
    rows: NDArray[np.int64], scores: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top` best of each query [Q, n], best first; equal scores keep their order."""
    top = min(top, scores.shape[1])
    chosen = np.empty((len(scores), top), dtype=np.int64)
    for query, line in enumerate(scores):
        threshold = np.partition(line, -top)[-top]
        candidates = np.flatnonzero(line >= threshold)
        chosen[query] = candidates[np.argsort(-line[candidates], kind="stable")[:top]]
    return np.take_along_axis(rows, chosen, axis=1), np.take_along_axis(scores, chosen, axis=1)


class _Lines:
    """Rows of a JSONL file by number, parsed when asked for."""

    def __init__(self, path: Path, content: bytes | mmap.mmap) -> None:
        self.path, self.content = path, content

    @classmethod
    def open(cls, path: Path) -> _Lines:
        with path.open("rb") as file:
            empty = path.stat().st_size == 0
            return cls(path, b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.frombuffer(self.content, dtype=np.uint8) == ord("\n"))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start = int(self._ends[row - 1]) + 1 if row else 0
        try:
            record = json.loads(self.content[start : int(self._ends[row])])
            return {name: record.get(name) for name in RECORD} | {"id": record["id"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.path} line {row + 1}: holds no id", hint="run `tcl embed` again") from error


class _Columns:
    """Rows of a Parquet table by number."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: self.table[name][row].as_py() for name in RECORD if name in self.table.column_names}


def _belonging(path: Path, name: str) -> Path:
    file = sidecar(path, name)
    if not file.is_file():
        raise UsageError(f"{file}: is missing; it belongs to {path}", hint="keep the files of `tcl embed` together")
    return file


def _read_meta(path: Path) -> dict[str, Any]:
    file = _belonging(path, "meta.json")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: malformed JSON: {error}", hint="run `tcl embed` again") from error
    if not isinstance(meta, dict):
        raise DataError(f"{file}: holds no JSON object", hint="run `tcl embed` again")
    return meta


def _map_npy(path: Path) -> NDArray[Any]:
    try:
        vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged or cut off: {reason}", hint="run `tcl embed` again") from error
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
        raise DataError(f"{path}: holds {vectors.dtype} {vectors.shape}, not float vectors [N, E]")
    return vectors


def _read_parquet(path: Path) -> tuple[NDArray[Any], _Columns]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, memory_map=True).combine_chunks()
        column = table["vector"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(table.num_rows, column.type.list_size), _Columns(table)
    except (pa.ArrowException, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not vectors of `tcl embed`: {' '.join(str(error).split())}") from error
