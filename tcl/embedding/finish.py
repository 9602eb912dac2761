"""From the rows of a finished job to the files that stay. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tcl.vectors.dtypes import int8_scale, recall_kept
from tcl.vectors.writer import VectorWriter
from tcl.version import __version__

if TYPE_CHECKING:
    from tcl.embedding.job import FileJob

FORMAT_VERSION = 1
CHUNK_ROWS = 8192
RECALL_ROWS = 1024
CHUNK_BYTES = 64 << 20  # of tokens


class _Chunk:
    """Neighbouring rows: those that have vectors, and those that have none, each in order."""

    def __init__(self, job: FileJob, windows: range) -> None:
        self._job = job
        self.rows = range(job.plan.rows_of(windows[0]).start, job.plan.rows_of(windows[-1]).stop)
        self.kept: NDArray[np.bool_] = np.zeros(len(self.rows), bool)
        self.failed: list[tuple[int, str]] = []
        batches = range(job.plan.batches_of(windows[0]).start, job.plan.batches_of(windows[-1]).stop)
        for entry in job.ledger.entries(batches):
            for start, count in entry.runs:
                self.kept[start - self.rows.start : start - self.rows.start + count] = True
            self.failed += entry.failed
        self.failed.sort()
        self._written = int(self.kept.nonzero()[0].max(initial=-1)) + 1  # behind it the file may end

    def vectors(self) -> NDArray[np.float32]:
        return self._job.store.vectors(self.rows.start, self.rows.start + self._written)[self.kept[: self._written]]

    def tokens(self) -> NDArray[np.float16] | None:
        tokens = self._job.store.tokens(self.rows.start, self.rows.start + self._written)
        return None if tokens is None else tokens[self.kept[: self._written]]

    def names(self) -> list[int]:
        return [row for row, kept in zip(self.rows, self.kept, strict=True) if kept]


def _chunks(job: FileJob) -> Iterator[_Chunk]:
    span = job.plan.window * job.plan.batch_size
    rows = CHUNK_ROWS
    if job.facts.token_shape:
        rows = min(rows, CHUNK_BYTES // (2 * job.facts.token_shape[0] * job.facts.token_shape[1]))
    step = max(1, rows // span)
    for start in range(0, job.plan.windows, step):
        yield _Chunk(job, range(start, min(start + step, job.plan.windows)))


def _slices(parts: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The same rows, few at a time: each is compared with every query at once."""
    for part in parts:
        for start in range(0, len(part), RECALL_ROWS):
            yield part[start : start + RECALL_ROWS]


def write_final(job: FileJob, final: Path) -> None:
    """Write the final files of a job whose batches are all done, complete but for their place.

    Args:
        job: with a ledger that is up to date.
        final: folder to write them in; what a call that was killed left there is discarded.
    """
    shutil.rmtree(final, ignore_errors=True)
    dtype, facts, inputs = job.options.dtype, job.facts, job.inputs

    def vectors() -> Iterator[NDArray[np.float32]]:
        return (chunk.vectors() for chunk in _chunks(job))

    scale = None
    if dtype == "int8":
        largest = np.zeros(facts.embed_dim, np.float32)
        for part in vectors():
            largest = np.maximum(largest, np.abs(part).max(axis=0, initial=0))
        scale = int8_scale(largest)
    value_name = "text" if inputs.kind == "text" else "path"
    writer = VectorWriter(job.out, facts.embed_dim, dtype, value_name, final, scale, facts.token_shape)
    try:
        for chunk in _chunks(job):
            names = chunk.names()
            ids, values = ([texts[row] for row in names] for texts in (inputs.ids, inputs.values))
            writer.append(ids, values, chunk.vectors(), chunk.tokens())
            for row, reason in chunk.failed:
                writer.fail(inputs.ids[row], reason)
        meta = _meta(job, writer.count, writer.failed)
        if scale is not None:
            meta["scale"] = [float(value) for value in scale]
        if dtype != "float32":
            share, queries = recall_kept(lambda: _slices(vectors()), writer.count, dtype, scale)
            meta |= {"recall_at_10": round(share, 4), "recall_queries": queries}
        writer.complete(meta)
    finally:
        writer.close()


def _meta(job: FileJob, count: int, failed: int) -> dict[str, Any]:
    """What `.meta.json` says of any vectors; the same for every run of the same job."""
    facts = job.facts
    meta: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": job.inputs.kind,
        "count": count,
        "failed": failed,
        "dim": facts.embed_dim,
        "dtype": job.options.dtype,
        "normalized": True,
        "model_hash": facts.model_hash,
        "backend": facts.backend,
        "precision": facts.precision,
        "preprocessing": facts.preprocessing,
        "root": str(job.inputs.root.absolute()),
        "batch_size": job.options.batch_size,
        "inputs_stamp": job.inputs.stamp,
        "tcl_version": __version__,
    }
    if facts.token_shape:
        meta["token_shape"] = list(facts.token_shape)
    return meta
