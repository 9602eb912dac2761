"""Copies of checkpoints on other machines, by fsspec, while the training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType

from tcl.errors import TclError, UsageError, reason_of
from tcl.training.reporter import Reporter

LAST_COPIES = 600.0  # seconds that the copies still under way have when a run ends
HURRIED = 5.0  # the same when the machine is about to be taken away


class Uploader:
    """Copies folders to a URL one after the other, in the background.

    A copy that fails is a warning: the training is worth more than its copy. The thread is a daemon, so that a storage
    that does not answer cannot keep the process from ending.

    Args:
        url: where to, e.g. `s3://bucket/run`; nothing is copied when omitted.
        reporter: is told what failed, and what is waited for.

    Raises:
        UsageError: the URL's kind is unknown, or its package is not installed.
    """

    def __init__(self, url: str | None, reporter: Reporter) -> None:
        self._url, self._reporter = url, reporter
        self._pending: list[Path] = []  # the first one is being copied
        self._changed = Condition()
        self._waited = False
        if url is None:
            return
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"train.upload: {url}: {error}", hint="install its package, or use another URL") from error
        Thread(target=self._work, name="upload", daemon=True).start()

    @property
    def pending(self) -> list[Path]:
        """The folders that are being copied or wait for their turn, and so have to stay."""
        with self._changed:
            return list(self._pending)

    def copy(self, folder: Path) -> None:
        """Copy a folder that does not change any more; a checkpoint still waiting is dropped for a newer one."""
        if self._url is None:
            return
        with self._changed:
            waiting = [other for other in self._pending[1:] if other.parent != folder.parent]
            self._pending = [*self._pending[:1], *waiting, folder]
            self._changed.notify_all()

    def wait(self, seconds: float = LAST_COPIES, stop: Callable[[], bool] = lambda: False) -> None:
        """Let the last copies finish; this is done once.

        Args:
            seconds: at most.
            stop: asked all the time; True leaves `HURRIED` seconds.
        """
        names = self._names()
        if self._waited or not names:
            return
        hurried = stop()
        seconds = min(seconds, HURRIED) if hurried else seconds
        allowed = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
        self._reporter.note(f"Waiting for copies to {self._url}, at most {allowed}: {names}")
        end = time.monotonic() + seconds
        with self._changed:
            while self._pending and time.monotonic() < end:
                if not hurried and stop():
                    end, hurried = min(end, time.monotonic() + HURRIED), True
                self._changed.wait(0.1)
        self._waited = True
        if left := self._names():
            self._reporter.message(f"not copied to {self._url} in time, but kept here: {left}")

    def _names(self) -> str:
        return ", ".join(folder.name for folder in self.pending)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pending:
                    self._changed.wait()
                folder = self._pending[0]
            self._copy(folder)
            with self._changed:
                self._pending.pop(0)
                self._changed.notify_all()

    def _copy(self, folder: Path) -> None:
        target = f"{self._root.rstrip('/')}/{folder.name}"
        try:
            self._files.makedirs(target, exist_ok=True)
            files = [path for path in folder.rglob("*") if path.is_file()]
            # What marks a folder as a model or a checkpoint comes last: a copy cut short does not pass for one.
            for path in sorted(files, key=lambda path: (path.suffix == ".json", path)):
                name = path.relative_to(folder).as_posix()
                self._files.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(path), f"{target}/{name}")
        except Exception as error:  # every kind of storage has its own
            self._reporter.message(f"{folder.name} was not copied to {self._url}: {reason_of(error)}")

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error of the run its last checkpoint is still copied; Ctrl-C and the like end at once."""
        if error is None or isinstance(error, TclError):
            self.wait()
