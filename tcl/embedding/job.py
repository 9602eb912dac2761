"""A job that writes one file of vectors, and survives whatever kills it.

It works in the folder `<out>.partial`. When all batches are done, their rows become the final files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tcl.data.inputs.listing import Inputs
from tcl.embedding.folder import (
    FINAL,
    INPUTS,
    check_alone,
    check_free,
    check_own,
    clear_final,
    continues,
    discard,
    finished_meta,
    is_begun,
    is_complete,
    is_leftover,
    lock,
    may_replace,
    remove,
    write_job,
)
from tcl.embedding.journal import Entry, JournalWriter, Ledger, VectorStore, next_number, runs_of
from tcl.embedding.pipeline import Clock, Link, Pipeline
from tcl.embedding.plan import BatchPlan, EncoderFacts, Options, Work, fingerprint, refuse_failed
from tcl.errors import DataError, TclError, reason_of
from tcl.files.locks import release
from tcl.vectors.dtypes import int8_scale, recall_kept
from tcl.vectors.files import check_output, meta_of, partial_folder, publish
from tcl.vectors.writer import VectorWriter
from tcl.version import __version__

if TYPE_CHECKING:
    from tcl.encoders.base import Encoder

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


def write_final(job: FileJob) -> None:
    """Write the final files of a job whose batches are all done, complete but for their place.

    Args:
        job: with a ledger that is up to date.
    """
    clear_final(job.folder)  # what a call that was killed left there
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
    writer = VectorWriter(job.out, facts.embed_dim, dtype, value_name, job.folder / FINAL, scale, facts.token_shape)
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


class FileJob:
    """A job that is locked and ready to go on; let go at the end of its `with` block.

    Attributes:
        out: final name of the vectors.
        folder: where it works.
        inputs: what is embedded.
        facts: of the encoder.
        options: how.
        plan: its batches.
        ledger: those that are done.
        complete: all are, and the final files are written; they may lack their names.
    """

    def __init__(
        self, out: Path, inputs: Inputs, facts: EncoderFacts, options: Options, descriptor: int, complete: bool
    ) -> None:
        self.out, self.inputs, self.facts, self.options, self.complete = out, inputs, facts, options, complete
        self.folder = partial_folder(out)
        self.plan = BatchPlan.of(inputs, options.batch_size)
        self._lock = descriptor
        self.store = VectorStore(self.folder, facts.embed_dim, facts.token_shape)
        failures = complete or options.on_error == "skip"
        self.ledger = Ledger(self.folder, self.plan, None if complete else self.store, failures)
        self._journal = next_number(self.folder)

    @classmethod
    def open(cls, out: Path, inputs: Inputs, facts: EncoderFacts, options: Options, restart: bool = False) -> FileJob:
        """Begin a job, or go on with the one that was begun here.

        Raises:
            UsageError: `out` exists or cannot be written; another process works on it; or the job that was begun is
                another one.
            DataError: it has inputs without a vector, and `on_error` is `fail`.
            TclError: the disk is full or gone.
        """
        check_file_output(out, restart)
        folder = partial_folder(out)
        descriptor = _hold(out)
        try:
            with disk_errors(folder):
                if restart:
                    discard(folder)
                wanted = fingerprint(inputs, facts, options)
                begun = continues(folder, wanted, out)
                if not begun and not is_leftover(folder, wanted, out):
                    discard(folder)  # nothing says what is there
                    _check_still(out, restart)
                    write_job(folder, wanted, restart)
                complete = is_complete(folder)
                if complete:
                    refuse_failed(out, finished_meta(folder, out), options)
                return cls(out, inputs, facts, options, descriptor, complete)
        except BaseException:
            release(descriptor)
            raise

    def __enter__(self) -> FileJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go. A job in which nothing is done leaves nothing."""
        self.store.close()
        try:
            if kind is not None and not is_complete(self.folder) and not Ledger(self.folder, self.plan).done.any():
                remove(self.folder)
        except OSError:  # the folder is gone, or its disk is: nothing to tidy up
            pass
        release(self._lock)

    @property
    def rows_done(self) -> int:
        """Inputs that an earlier process has done."""
        return len(self.inputs) if self.complete else self.ledger.rows_done

    def state(self) -> str:
        """How far the job has come, for people to read."""
        return f"{int(Ledger(self.folder, self.plan).done.sum())} of {self.plan.batches} batches are done"

    def pending(self) -> Iterator[Work]:
        """What is left to do, in order."""
        for window in range(0 if self.complete else self.plan.windows):
            batches = [batch for batch in self.plan.batches_of(window) if not self.ledger.done[batch]]
            if batches:
                yield Work(window, batches)

    def task(self) -> BatchesTask:
        """How any process does pending work."""
        return BatchesTask(self.folder, self.plan, self.facts, self.options, self._journal)

    def share_inputs(self) -> Path:
        """A file of the inputs, for other processes."""
        path = self.folder / INPUTS
        with disk_errors(self.folder):
            self.inputs.save(path)
        return path

    def finish(self, allow_empty: bool = False) -> dict[str, Any]:
        """Write the final files when all batches are done, give them their names, and remove the folder.

        May be called again after it was killed at any point.

        Args:
            allow_empty: no vector at all is no error.

        Returns:
            what `.meta.json` holds.

        Raises:
            DataError: no input has a vector.
            UsageError: somebody else has put vectors there meanwhile.
            TclError: the disk is full or gone.
        """
        with disk_errors(self.folder):
            if not self.complete:
                self.ledger = Ledger(self.folder, self.plan)
                if not allow_empty:
                    self._check_any()
                write_final(self)
            check_free(self.folder, self.out)
            publish(self.folder / FINAL, self.out)
            meta = meta_of(self.out)
            remove(self.folder)
            return meta

    def _check_any(self) -> None:
        failed: list[tuple[int, str]] = []
        for entry in self.ledger.entries(range(self.plan.batches)):
            if entry.runs:
                return
            failed = [min([*failed, *entry.failed])]
        remove(self.folder)
        row, reason = failed[0]
        raise DataError(
            f"none of the {len(self.inputs)} inputs has a vector",
            hint=f"the first one is {self.inputs.ids[row]}: {reason}",
        )


@dataclass(frozen=True)
class BatchesTask:
    """Batches of a file, done by any process that sees its folder.

    Attributes:
        folder: of the job.
        plan: its batches.
        facts: of the encoder.
        options: how.
        journal: number of the first process's journal.
    """

    folder: Path
    plan: BatchPlan
    facts: EncoderFacts
    options: Options
    journal: int

    def run(self, worker: int, encoder: Encoder, inputs: Inputs, work: Iterator[Work], link: Link) -> Clock:
        """As `tcl.embedding.workers.Task` says."""
        with ExitStack() as stack:
            with disk_errors(self.folder):
                shape = self.facts.embed_dim, self.facts.token_shape
                store = stack.enter_context(closing(VectorStore(self.folder, *shape)))
                journal = stack.enter_context(closing(JournalWriter(self.folder, self.journal + worker)))
            pipeline = Pipeline(inputs, encoder, self.plan, self.options, _Sink(self.folder, store, journal), link.say)
            pipeline.run(work, link.progress)
        return pipeline.clock


class _Sink:
    """Keeps the batches of one process in the folder of a job."""

    def __init__(self, folder: Path, store: VectorStore, journal: JournalWriter) -> None:
        self._folder, self._store, self._journal = folder, store, journal

    def write(
        self,
        batch: int,
        rows: NDArray[np.int64],
        vectors: NDArray[np.float32],
        tokens: NDArray[np.float16] | None,
        failed: list[tuple[int, str]],
    ) -> None:
        """Keep a batch: first its vectors, then the line that says so."""
        with disk_errors(self._folder):
            runs = runs_of(rows)
            self._journal.append(Entry(batch, self._store.write(runs, vectors, tokens), runs, failed))


def check_file_output(out: Path, restart: bool) -> None:
    """`check_output`, where a job that was begun may go on.

    Raises:
        UsageError: `out` exists and may not be replaced, or cannot be written.
    """
    check_own(partial_folder(out))
    check_output(out, restart, not restart and may_replace(partial_folder(out)))


def _hold(out: Path) -> int:
    """Lock the folder of a job, unless another process writes vectors with the same sidecar files."""
    folder = partial_folder(out)
    descriptor = lock(folder, out)
    try:
        check_alone(out)
    except BaseException:
        if not is_begun(folder):
            remove(folder)
        release(descriptor)
        raise
    return descriptor


def _check_still(out: Path, restart: bool) -> None:
    """`check_output` of a job that is about to begin: another may have ended while its lock was waited for."""
    try:
        check_output(out, restart)
    except BaseException:
        remove(partial_folder(out))
        raise


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the disk reports while results are written, as one line.

    Raises:
        TclError: in the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise TclError(
            f"{folder}: cannot be written: {error.strerror or reason_of(error)}",
            hint="what was done stays; make room or bring the disk back, and the same command goes on",
        ) from error
