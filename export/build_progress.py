"""How far a build of TensorRT is: its phases run inside one another, and this makes one figure of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, current_thread, main_thread
from typing import Any

Progress = Callable[[str, float], object]
"""Told the phase and the share that is done, from 0 to 1."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are running, and the share of the whole that is done.

    A phase is one step of the phase that it runs in. The share never falls, though builders repeat phases.

    Args:
        progress: told after each step.
        interrupted: whether the build shall stop.
    """

    def __init__(self, progress: Progress, interrupted: Callable[[], bool] = lambda: False) -> None:
        self._progress, self._interrupted, self._lock = progress, interrupted, Lock()
        self._running: dict[str, _Phase] = {}
        self._share = 0.0
        self.stopped_by: Exception | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins."""
        with self._lock:
            self._running[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """Step number `step` of a phase is done; False asks the builder to stop."""
        with self._lock:
            if phase := self._running.get(name):
                phase.done = min(step + 1, phase.steps)
            return self._report(name)

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._running.pop(name, None)

    def _report(self, name: str) -> bool:
        # An exception cannot pass through the builder: it is kept, and the build cancelled.
        try:
            tops = [name for name, phase in self._running.items() if phase.parent not in self._running]
            self._share = max(self._share, min(max(map(self._done, tops), default=0.0), 1.0))
            self._progress(name, self._share)
        except Exception as error:
            self.stopped_by = self.stopped_by or error
        return self.stopped_by is None and not self._interrupted()

    def _done(self, name: str) -> float:
        phase = self._running[name]
        if phase.done == phase.steps:
            return 1.0
        inside = [self._done(child) for child, other in self._running.items() if other.parent == name]
        return (phase.done + max(inside, default=0.0)) / phase.steps


def monitor(trt: Any, phases: Phases) -> Any:
    """`phases` as the monitor that TensorRT calls."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only sets a flag while the block runs, and does what it always does when it ends.

    The exception would otherwise arise in whatever Python the builder calls just then, which swallows it.

    Yields:
        Whether it was pressed.
    """
    if current_thread() is not main_thread():  # which alone gets signals
        yield lambda: False
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
