"""Building a FAISS index of vectors, and measuring what it finds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, UsageError, reason_of
from tcl.files.atomic import atomic_file, write_whole
from tcl.files.hashes import file_sha256
from tcl.search.exact import ExactCollection
from tcl.search.faiss import IndexReport, compare_exactly, find_rows, load_faiss, report_file
from tcl.vectors.reader import VectorFile

IndexKind = Literal["auto", "flat", "hnsw", "ivfpq"]
FLAT_ROWS = 20_000  # up to here, comparing every row takes a millisecond
HNSW_ROWS = 2_000_000  # up to here, a graph over float32 vectors fits the memory of most machines
RECALL_AT = 10
RECALL_WANTED = 0.95
SAMPLE = 200  # rows taken as queries to measure recall
SEED = 0
_BLOCK_ROWS = 16384
_ROUNDING = 1e-6  # of a cosine: whoever scores as much as the last of the exact hits is as good as it
_HNSW_NEIGHBOURS = 32
_TRAINED_PER_CELL = 40  # rows; FAISS warns below 39
_TRAINED_PER_CODE = 256 * _TRAINED_PER_CELL  # the codebooks of product quantisation have 256 entries


def choose_kind(count: int) -> Literal["flat", "hnsw", "ivfpq"]:
    """By size: exact, a graph over whole vectors, or cells of compressed ones."""
    return "flat" if count <= FLAT_ROWS else "hnsw" if count <= HNSW_ROWS else "ivfpq"


def build_index(
    vectors: VectorFile, out: Path, kind: IndexKind = "auto", progress: Callable[[int], object] = lambda rows: None
) -> IndexReport:
    """Build an index, measure its recall against exact search, and write both.

    The effort of a search is doubled until 95 % of the exact hits are found, or everything is visited.

    Args:
        vectors: what to index.
        out: `.faiss`; an index that is there is replaced.
        kind: `auto` chooses by size.
        progress: called with the number of rows added since the last call.

    Raises:
        MissingExtraError: FAISS is not installed.
        UsageError: too few rows for this kind, or `out` cannot be written.
        DataError: a value is not finite, or the vectors were replaced meanwhile.
    """
    faiss = load_faiss()
    stamps = {path: _stamp(path) for path in vectors.files}
    vectors = VectorFile.open(vectors.path)  # so that what is read is not older than its stamps
    if not len(vectors):
        raise DataError(f"{vectors.path}: holds no vectors", hint="embed something first")
    chosen = choose_kind(len(vectors)) if kind == "auto" else kind
    index = _empty(faiss, chosen, vectors)
    for _, block in vectors.floats(_BLOCK_ROWS):
        index.add(block)
        progress(len(block))
    refine = 4 if chosen == "ivfpq" else 1
    queries = np.sort(np.random.default_rng(SEED).permutation(len(vectors))[:SAMPLE])
    effort, recall = _tune(index, chosen, vectors, queries.tolist(), refine)
    _check_unchanged(stamps)
    report = IndexReport(
        kind=chosen,
        vectors=os.path.relpath(vectors.path, out.parent),
        files={path.name: stamp for path, stamp in stamps.items()},
        model_hash=str(vectors.meta.get("model_hash")),
        count=len(vectors),
        dim=vectors.dim,
        effort=effort,
        refine=refine,
        recall_at_10=round(recall, 4),
        queries=len(queries),
    )
    _write(faiss, index, out, report)
    return report


def _empty(faiss: Any, kind: str, vectors: VectorFile) -> Any:
    """An index without rows, trained where it has to be."""
    dim, count = vectors.dim, len(vectors)
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        return index
    if count < _TRAINED_PER_CODE:
        raise UsageError(
            f"{count} rows are too few for ivfpq, which learns from at least {_TRAINED_PER_CODE}",
            hint="use --kind hnsw or --kind flat",
        )
    cells = max(1, min(int(4 * count**0.5), count // _TRAINED_PER_CELL, 65536))
    codes = max(size for size in range(1, dim // 2 + 1) if dim % size == 0 and size <= 64)
    index = faiss.index_factory(dim, f"IVF{cells},PQ{codes}", faiss.METRIC_INNER_PRODUCT)
    wanted = min(count, max(_TRAINED_PER_CODE, 2 * _TRAINED_PER_CELL * cells))
    rows = np.sort(np.random.default_rng(SEED).permutation(count)[:wanted])
    index.train(_gather(vectors, rows))
    return index


def _gather(vectors: VectorFile, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Many rows [n, E] in one pass over the file; `rows` ascend."""
    found = [block[rows[(rows >= s) & (rows < s + len(block))] - s] for s, block in vectors.floats(_BLOCK_ROWS)]
    return np.concatenate(found)


def _tune(index: Any, kind: str, vectors: VectorFile, rows: Sequence[int], refine: int) -> tuple[int, float]:
    """The least effort that finds enough of what exact search finds, and how much that is."""
    queries = vectors.take(rows)
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    top = min(RECALL_AT, len(vectors))
    worst = np.array([hits[-1].score for hits in ExactCollection(vectors).search(queries, top)])
    limit = {"flat": 0, "hnsw": 1024, "ivfpq": getattr(index, "nlist", 0)}[kind]
    effort = min({"flat": 0, "hnsw": 32, "ivfpq": 8}[kind], limit)
    while True:
        found = compare_exactly(vectors, queries, find_rows(index, kind, queries, top, effort, refine), top)
        hits = sum(int((own >= least - _ROUNDING).sum()) for (_, own), least in zip(found, worst, strict=True))
        recall = hits / (top * len(rows))
        if recall >= RECALL_WANTED or effort >= limit:
            return effort, recall
        effort = min(2 * effort, limit)


def _write(faiss: Any, index: Any, out: Path, report: IndexReport) -> None:
    try:
        with atomic_file(out) as temporary:
            faiss.write_index(index, str(temporary))
            report_file(out).unlink(missing_ok=True)  # until the end there is no index
        write_whole(report_file(out), json.dumps(asdict(report), indent=2) + "\n")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UsageError(f"{out}: cannot be written: {reason}", hint="choose another --out") from error


def _stamp(file: Path) -> dict[str, Any]:
    status = file.stat()  # before the content, so that a change meanwhile shows
    return {"bytes": status.st_size, "changed": status.st_mtime_ns, "sha256": file_sha256(file)}


def _check_unchanged(stamps: dict[Path, dict[str, Any]]) -> None:
    for path, stamp in stamps.items():
        status = path.stat() if path.exists() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (stamp["bytes"], stamp["changed"]):
            raise DataError(f"{path}: changed while it was indexed", hint="run `tcl index` again")
