"""Ctrl-C and SIGTERM as a wish that a program looks at when it suits, as between two steps of a training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Stopped(BaseException):
    """What is done inside `StopRequest.raising` is wanted no longer. No error, so that nothing takes it for one."""


class StopRequest:
    """Inside it, the first SIGINT or SIGTERM only sets `signal`. A Ctrl-C after it acts as usual; further SIGTERMs, as
    launchers and schedulers send them on top of each other, change nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._raises = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        interrupt = self._previous.pop(signal.SIGINT, None)
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)
        if self._raises:
            self._raises = False
            raise Stopped

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside it a signal raises `Stopped`, also one from before: for work that takes long and changes nothing."""
        try:
            self._raises = True
            if self.signal:
                raise Stopped
            yield
        finally:
            self._raises = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
