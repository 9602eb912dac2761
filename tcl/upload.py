"""Copies of checkpoints on other machines, by fsspec, while the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tcl.errors import UsageError


class Uploader:
    """Copies folders to a URL one after the other, in the background; leaving it waits for the last one.

    A copy that fails is a warning: the training is worth more than its copy.

    Args:
        url: where to, e.g. `s3://bucket/run`; nothing is copied when omitted.
        warn: is told what failed.

    Raises:
        UsageError: the URL's kind is unknown, or its package is not installed.
    """

    def __init__(self, url: str | None, warn: Callable[[str], None]) -> None:
        self._url, self._warn = url, warn
        self._last: Future[None] | None = None
        if url is None:
            return
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"train.upload: {url}: {error}", hint="install its package, or use another URL") from error
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")

    def copy(self, folder: Path) -> None:
        """Copy a folder that does not change any more; one that is still waiting its turn is dropped for it."""
        if self._url is None:
            return
        if self._last is not None:
            self._last.cancel()
        self._last = self._pool.submit(self._copy, folder)

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
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{folder.name} was not copied to {self._url}: {reason}")

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._url is not None:
            self._pool.shutdown(wait=True)
