"""Files and folders that exist whole or not at all, whatever kills the process in between."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of what is being written."""


@contextmanager
def atomic_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; it takes the name `target` when the block ends without an exception.

    Args:
        target: the final name.
        replace: an existing `target` gives way; without it, it is an error.

    Raises:
        FileExistsError: `target` is there and may not be replaced.
    """
    if target.exists() and not replace:
        raise FileExistsError(f"{target} exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a killed process left behind is cleared here rather than piling up.
    temporary = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        if target.exists():
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; the file written there takes that name when the block ends.

    After an exception, of a full disk for example, a `target` that was there is what it was.
    """
    temporary = target.with_name(f".{target.name}{PARTIAL}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def shared_file(target: Path) -> Iterator[Path]:
    """`atomic_file` for what several processes may write at once and can be made anew, as in the cache.

    Each has a temporary file of its own, which is there from the start: what cannot be written shows before the work.
    It is not flushed to the disk.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    # Not by `tempfile`: other users of a shared cache folder may read what is in it.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def try_writing(folder: Path) -> None:
    """See whether a file can be made in a folder, or where it is missing, in the nearest above it. Leaves nothing.

    Raises:
        OSError: none can.
    """
    place = folder.absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    tempfile.TemporaryFile(dir=there).close()


def write_whole(path: Path, text: str) -> None:
    """Write a text file by `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Flush a file, so that a rename never survives a power cut that its content did not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
