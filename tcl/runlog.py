"""What a run tells the outside as it goes: its files, its listener, and the wish to stop it. Needs no torch."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Reporter:
    """Hears what a run does; this one keeps quiet."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def started(self, first_step: int, total_steps: int) -> None:
        """The loop begins after `first_step` steps that are done already."""

    def stepped(self, step: int) -> None:
        """`step` steps are done."""

    def logged(self, record: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl` was written."""


class RunLog:
    """`metrics.jsonl` and `bad_samples.jsonl`. A resumed run first drops what was written past its checkpoint."""

    def __init__(self, run: Path, step: int) -> None:
        self._metrics = run / "metrics.jsonl"
        self._bad = run / "bad_samples.jsonl"
        for path in (self._metrics, self._bad):
            _keep_until(path, step)
        self._clock = time.perf_counter()
        self._samples: int | None = None

    def metrics(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append one line; training records gain their speed since the one before."""
        if "samples" in record:
            now = time.perf_counter()
            if self._samples is not None:
                speed = (record["samples"] - self._samples) / (now - self._clock)
                record = {**record, "samples_per_second": round(speed, 2)}
            self._clock, self._samples = now, record["samples"]
        _append(self._metrics, [record])
        return record

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def bad_samples(self, step: int, samples: Sequence[dict[str, str]]) -> None:
        """Append what could not be read in the batch of `step`, and why."""
        if samples:
            _append(self._bad, [{"step": step, **sample} for sample in samples])


class StopRequest:
    """Inside it, the first SIGINT or SIGTERM only sets `requested`; a second one acts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


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


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that was cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(record)
    temporary = path.with_suffix(".partial")
    temporary.unlink(missing_ok=True)
    _append(temporary, kept)
    temporary.replace(path)
