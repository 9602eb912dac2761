"""A storage behind `slow://` whose writes wait until they may go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class SlowFiles(MemoryFileSystem):
    """Files in memory; each is written only when `go` is set."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    go = threading.Event()

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self.go.wait(30)
        super().put_file(*arguments, **options)


@contextmanager
def slow_storage() -> Iterator[type[SlowFiles]]:
    """`slow://`, empty and at a standstill."""
    fsspec.register_implementation("slow", SlowFiles, clobber=True)
    SlowFiles.go.clear()
    SlowFiles.store.clear()
    yield SlowFiles
    SlowFiles.go.set()
