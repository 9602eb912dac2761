"""Where an embedding job writes: one file of vectors, or a folder of parts. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from tcl.data.inputs.listing import Inputs
from tcl.embedding.folder import is_begun
from tcl.embedding.job import FileJob, check_file_output
from tcl.embedding.parts import META, SHARD_ROWS, WORK, PartsJob, check_parts_output, parts_fingerprint
from tcl.embedding.plan import EncoderFacts, Options, differences, fingerprint, fingerprint_of, refuse_failed
from tcl.embedding.workers import Task
from tcl.errors import UsageError
from tcl.vectors.files import partial_folder, read_meta


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
            meta = json.loads((self.path / META).read_text("utf-8")) if self.parts else read_meta(self.path)
            files = [self.path / part["file"] for part in meta["parts"]] if self.parts else [self.path]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return meta if isinstance(meta, dict) and files and all(file.is_file() for file in files) else None

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
