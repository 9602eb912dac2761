"""Vectors in a folder of parts, for more than one file should hold: each part is a job of its own.

    DIR/part-00000.npy   the first rows, with sidecar files as any vectors have them
    DIR/part-00001.npy   the next
    DIR/meta.json        what holds for all of them, and {"file", "count"} of each; written last
    DIR/.partial/        what the job is, until then

A part is finished when its vectors have their name, and is then not looked at again. `Output` stands for what `--out`
names: such a folder, or one file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tcl.data.inputs.listing import Inputs
from tcl.embedding.folder import INPUTS, check_own, continues, discard, is_begun, lock, remove, write_job
from tcl.embedding.job import FileJob, check_file_output, disk_errors
from tcl.embedding.pipeline import Clock, Link
from tcl.embedding.plan import EncoderFacts, Options, differences, fingerprint, fingerprint_of, refuse_failed
from tcl.embedding.workers import Task
from tcl.errors import DataError, UsageError
from tcl.files.atomic import write_whole
from tcl.files.locks import release
from tcl.vectors.files import SUFFIXES, check_folder, meta_of, partial_folder, read_meta, sync_folder

if TYPE_CHECKING:
    from tcl.encoders.base import Encoder

META = "meta.json"
WORK = ".partial"
SHARD_ROWS = 100_000
_PART = re.compile(r"part-\d{5,}\.((npy|parquet)(\.partial)?|ids\.jsonl|errors\.jsonl|tokens\.npy|meta\.json)")


@dataclass(frozen=True)
class Layout:
    """Which rows are in which part.

    Attributes:
        folder: of the parts.
        rows: inputs.
        shard_rows: inputs per part; fewer vectors where some cannot be read.
        suffix: `.npy` or `.parquet`.
    """

    folder: Path
    rows: int
    shard_rows: int
    suffix: str

    def __len__(self) -> int:
        return -(-self.rows // self.shard_rows)

    def rows_of(self, part: int) -> range:
        """Its inputs."""
        return range(part * self.shard_rows, min((part + 1) * self.shard_rows, self.rows))

    def file(self, part: int) -> Path:
        """Its vectors."""
        return self.folder / f"part-{part:05d}{self.suffix}"

    def is_done(self, part: int) -> bool:
        """Whether its files all have their names."""
        return self.file(part).exists() and not is_begun(partial_folder(self.file(part)))


class PartsJob:
    """A folder of parts that is locked and ready to go on; made by `open`, let go at the end of its `with` block.

    Attributes:
        layout: of the parts.
        inputs: of all of them.
        facts: of the encoder.
        options: how.
    """

    def __init__(self, layout: Layout, inputs: Inputs, facts: EncoderFacts, options: Options, descriptor: int) -> None:
        self.layout, self.inputs, self.facts, self.options = layout, inputs, facts, options
        self.out, self._lock = layout.folder, descriptor

    @classmethod
    def open(
        cls,
        folder: Path,
        inputs: Inputs,
        facts: EncoderFacts,
        options: Options,
        *,
        shard_rows: int = SHARD_ROWS,
        suffix: str = ".npy",
        restart: bool = False,
    ) -> PartsJob:
        """Begin a folder, or go on with the one that was begun.

        Raises:
            UsageError: it holds something else, or finished vectors; it cannot be written; another process works on
                it; or the job that was begun is another one.
        """
        check_parts_output(folder, restart)
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
        descriptor = lock(folder / WORK, folder)
        try:
            with disk_errors(folder):
                if restart:
                    discard(folder / WORK)
                    _remove_parts(folder)
                wanted = fingerprint(inputs, facts, options) | parts_fingerprint(shard_rows, suffix)
                if not continues(folder / WORK, wanted, folder):
                    write_job(folder / WORK, wanted)
                layout = Layout(folder, len(inputs), shard_rows, suffix)
                for part in filter(layout.is_done, range(len(layout)) if options.on_error == "fail" else ()):
                    refuse_failed(layout.file(part), meta_of(layout.file(part)), options)
            return cls(layout, inputs, facts, options, descriptor)
        except BaseException:
            release(descriptor)
            raise

    def __enter__(self) -> PartsJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go. A job in which nothing is done leaves nothing."""
        with suppress(OSError):  # the folder is gone, or its disk is: nothing to tidy up
            if kind is not None and not _parts(self.out):
                remove(self.out / WORK)
                self.out.rmdir()
        release(self._lock)

    @property
    def rows_done(self) -> int:
        """Inputs in finished parts."""
        return sum(len(self.layout.rows_of(part)) for part in range(len(self.layout)) if self.layout.is_done(part))

    def pending(self) -> Iterator[int]:
        """Parts that are left to do."""
        return (part for part in range(len(self.layout)) if not self.layout.is_done(part))

    def task(self) -> PartsTask:
        """How any process does pending parts."""
        return PartsTask(replace(self.layout, folder=self.out.absolute()), self.facts, self.options)

    def state(self) -> str:
        """How far the job has come, for people to read."""
        done = sum(self.layout.is_done(part) for part in range(len(self.layout)))
        return f"{done} of {len(self.layout)} parts are done"

    def share_inputs(self) -> Path:
        """A file of the inputs, for other processes."""
        path = self.out / WORK / INPUTS
        with disk_errors(self.out):
            self.inputs.save(path)
        return path

    def finish(self) -> dict[str, Any]:
        """Write `meta.json` when all parts are there.

        Returns:
            what it holds.

        Raises:
            DataError: no input has a vector.
            TclError: the disk is full or gone.
        """
        with disk_errors(self.out):
            metas = [meta_of(self.layout.file(part)) for part in range(len(self.layout))]
            if not any(meta["count"] for meta in metas):
                _remove_parts(self.out)
                remove(self.out / WORK)
                with suppress(OSError):
                    self.out.rmdir()
                hint = "see why with --on-error fail"
                raise DataError(f"none of the {len(self.inputs)} inputs has a vector", hint=hint)
            meta = self._meta(metas)
            write_whole(self.out / META, json.dumps(meta, indent=2) + "\n")  # a root may be no Unicode
            sync_folder(self.out)
            for leftover in self.out.glob("part-*.partial"):  # of a process that was killed as its last breath
                remove(leftover)
            remove(self.out / WORK)
            return meta

    def _meta(self, metas: list[dict[str, Any]]) -> dict[str, Any]:
        """From those of the parts."""
        meta = metas[0] | {name: sum(each[name] for each in metas) for name in ("count", "failed")}
        meta["inputs_stamp"] = self.inputs.stamp
        meta.pop("scale", None)  # each part has its own
        if "recall_at_10" in meta:
            queries = sum(each["recall_queries"] for each in metas)
            found = sum(each["recall_at_10"] * each["recall_queries"] for each in metas)
            meta |= {"recall_at_10": round(found / queries, 4) if queries else 1.0, "recall_queries": queries}
        meta["shard_rows"] = self.layout.shard_rows
        meta["parts"] = [
            {"file": self.layout.file(part).name, "count": each["count"]} for part, each in enumerate(metas)
        ]
        return meta


@dataclass(frozen=True)
class PartsTask:
    """Parts, done by any process that sees the folder.

    Attributes:
        layout: of the parts.
        facts: of the encoder.
        options: how.
    """

    layout: Layout
    facts: EncoderFacts
    options: Options

    def run(self, worker: int, encoder: Encoder, inputs: Inputs, work: Iterator[int], link: Link) -> Clock:
        """As `tcl.embedding.workers.Task` says."""
        return sum((self.embed_part(part, encoder, inputs, link) for part in work), Clock())

    def embed_part(self, part: int, encoder: Encoder, inputs: Inputs, link: Link) -> Clock:
        """Embed one part, or what is left of it."""
        rows = self.layout.rows_of(part)
        mine = inputs.slice(rows.start, rows.stop)
        with FileJob.open(self.layout.file(part), mine, self.facts, self.options) as job:
            link.progress(job.rows_done)
            clock = job.task().run(0, encoder, mine, job.pending(), link)
            job.finish(allow_empty=True)
        return clock


def check_parts_output(folder: Path, restart: bool) -> None:
    """Can parts be written to `folder`?

    Raises:
        UsageError: it holds something else, or finished vectors, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file", hint="choose another name, or one ending in .npy or .parquet")
    for working in (folder / WORK, *folder.glob("part-*.partial")):
        check_own(working)
    if not is_begun(folder / WORK) and folder.is_dir():
        if (folder / META).exists() and not restart:
            raise UsageError(f"{folder / META}: exists", hint="choose another name, or add --restart to replace it")
        own = {WORK, *(path.name for path in _parts(folder) if restart)}
        foreign = sorted({path.name for path in folder.iterdir()} - own)
        if foreign:
            raise UsageError(f"{folder}: holds {foreign[0]}", hint="choose a new folder for the vectors")
    check_folder(folder / WORK if folder.is_dir() else folder)


def parts_fingerprint(shard_rows: int, suffix: str) -> dict[str, Any]:
    """What of a folder has to be the same for it to go on, beside the fingerprint of the job."""
    return {"shard_rows": shard_rows, "format": suffix[1:]}


def _parts(folder: Path) -> list[Path]:
    """What a job has written into its folder, and may remove from it: first what says that all of it is there."""
    parts = sorted(path for path in folder.glob("part-*") if _PART.fullmatch(path.name) and not path.is_symlink())
    return [*folder.glob(META), *parts]


def _remove_parts(folder: Path) -> None:
    for path in _parts(folder):
        if path.is_dir():
            remove(path)
        else:
            path.unlink()


def is_parts_output(out: str) -> bool:
    """Whether `--out` names a folder of parts: it ends in a slash, is a folder, or has no suffix."""
    path = Path(out)
    return out.endswith("/") or (path.suffix not in SUFFIXES and (path.is_dir() or not path.suffix))


class Job(Protocol):
    """What `FileJob` and `PartsJob` have in common; both explain it."""

    def __enter__(self) -> Job: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    @property
    def rows_done(self) -> int: ...
    def state(self) -> str: ...
    def pending(self) -> Iterator[Any]: ...
    def task(self) -> Task: ...
    def share_inputs(self) -> Path: ...
    def finish(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Output:
    """Where vectors go.

    Attributes:
        path: a file ending in `.npy` or `.parquet`, or a folder of parts.
        parts: whether it is such a folder.
        shard_rows: inputs per part.
        suffix: of the parts.
    """

    path: Path
    parts: bool = False
    shard_rows: int = SHARD_ROWS
    suffix: Literal[".npy", ".parquet"] = ".npy"

    def check(self, restart: bool = False, resume: bool = False) -> None:
        """Look whether it can be written, before anything slow is done.

        Raises:
            UsageError: it cannot, or is there.
        """
        if resume and self.finished():
            return
        (check_parts_output if self.parts else check_file_output)(self.path, restart)

    def finished(self) -> dict[str, Any] | None:
        """What the meta file of finished vectors says; None where there are none, or a job goes on."""
        if is_begun(self.path / WORK if self.parts else partial_folder(self.path)):
            return None
        try:
            meta = read_meta(self.path / META) if self.parts else meta_of(self.path)
        except (OSError, DataError):
            return None
        files = [self.path / part["file"] for part in meta.get("parts") or ()] if self.parts else [self.path]
        return meta if files and all(file.is_file() for file in files) else None

    def open(self, inputs: Inputs, facts: EncoderFacts, options: Options, restart: bool) -> Job:
        """Begin the job, or go on with it."""
        if not self.parts:
            return FileJob.open(self.path, inputs, facts, options, restart)
        return PartsJob.open(
            self.path, inputs, facts, options, shard_rows=self.shard_rows, suffix=self.suffix, restart=restart
        )

    def check_finished(self, meta: dict[str, Any], inputs: Inputs, facts: EncoderFacts, options: Options) -> None:
        """Are the vectors that are there the ones that are wanted?

        Raises:
            UsageError: they are not.
            DataError: an input has none, and `on_error` is `fail`.
        """
        before, wanted = fingerprint_of(meta), fingerprint(inputs, facts, options)
        if self.parts:
            before |= parts_fingerprint(meta.get("shard_rows", 0), Path(meta["parts"][0]["file"]).suffix)
            wanted |= parts_fingerprint(self.shard_rows, self.suffix)
        found = differences(before, wanted)
        if found:
            raise UsageError(
                f"{self.path}: exists, with other {', '.join(found)}",
                hint="choose another name, or add --restart to replace it",
            )
        refuse_failed(self.path, meta, options)
