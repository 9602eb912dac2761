"""What a run tells the outside as it goes: its files, its reporter, and services that track metrics."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl.files.atomic import write_whole
from tcl.files.json_object import Malformed, parse_object
from tcl.training.health import HealthMonitor
from tcl.training.reporter import Reporter

if TYPE_CHECKING:
    from tcl.training.trackers import Trackers


class RunLog:
    """What a run writes as it goes: `metrics.jsonl`, `bad_samples.jsonl`, `warnings.jsonl`, and the trackers.

    A resumed run first drops what was written past its checkpoint.
    """

    def __init__(self, run: Path, step: int, reporter: Reporter, monitor: HealthMonitor) -> None:
        self._metrics, self._bad, self._warnings = (
            run / name for name in ("metrics.jsonl", "bad_samples.jsonl", "warnings.jsonl")
        )
        for path in (self._metrics, self._bad, self._warnings):
            _keep_until(path, step)
        self._reporter, self._monitor = reporter, monitor
        self._trackers: Trackers | None = None
        self._clock = time.perf_counter()
        self._samples: int | None = None
        self._waited = 0.0

    def track(self, trackers: Trackers) -> None:
        """Send every further record there too."""
        self._trackers = trackers

    def training(self, record: dict[str, Any], waited: float) -> None:
        """A line of figures; it gains the speed since the one before, and the monitor looks at it.

        Args:
            record: has `step` and `samples`.
            waited: seconds that the run has spent waiting for data so far.
        """
        now = time.perf_counter()
        if self._samples is not None:
            passed = now - self._clock
            record["samples_per_second"] = round((record["samples"] - self._samples) / passed, 2)
            record["loader_wait"] = round((waited - self._waited) / passed, 4)
        self._clock, self._samples, self._waited = now, record["samples"], waited
        self._write(record)
        for message in self._monitor.examine(record):
            self.warning(record["step"], message)

    def validation(self, record: dict[str, Any]) -> None:
        """A line of validation figures."""
        self._write(record)

    def warning(self, step: int, message: str) -> None:
        """Something the user should look at."""
        _append(self._warnings, [{"step": step, "message": message}])
        self._reporter.message(f"step {step}: {message}")

    def _write(self, record: dict[str, Any]) -> None:
        _append(self._metrics, [record])
        self._reporter.logged(record)
        if self._trackers:
            self._trackers.log(record)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def bad_samples(self, samples: Sequence[dict[str, Any]]) -> None:
        """Append what could not be read, with its step, and why."""
        if samples:
            _append(self._bad, samples)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._trackers:
            self._trackers.close()


def point_latest_at(run: Path) -> None:
    """Make `runs/latest` a link to a run under `runs`; runs elsewhere are named when they are wanted."""
    run = run.resolve()
    link = run.parent / "latest"
    if run.parent.name != "runs" or (link.exists() and not link.is_symlink()):
        return
    temporary = run.parent / ".latest.partial"
    temporary.unlink(missing_ok=True)
    os.symlink(run.name, temporary)
    temporary.replace(link)


def _append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(_finite(record)) for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity are no JSON; they are null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and lines that are cut short or damaged."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        with suppress(Malformed):
            if parse_object(line, {"step": int})["step"] <= step:
                kept.append(f"{line.decode()}\n")
    write_whole(path, "".join(kept))
