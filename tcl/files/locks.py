"""Locks on files, and what they protect: a run folder, or a file being written, belongs to one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tcl.errors import TclError, UsageError

LOCK_FILE = ".lock"
BEGUN_FILE = ".recipe.yaml"  # what a run is to train, until its first `config.yaml` says so
_TRIES = 10


def acquire(path: Path, *, wait: bool = False, create: bool = True) -> int:
    """Lock a file, against threads and other processes, until `release` or the end of the process, however it ends.

    On a file system without locks nothing is held.

    Args:
        path: the lock file. Whoever holds it may remove it.
        wait: for the one who has it.
        create: it is made where it is missing.

    Returns:
        its descriptor.

    Raises:
        BlockingIOError: another one has it.
        OSError: it cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # of a file that its holder has removed meanwhile


def release(descriptor: int) -> None:
    """Give up a lock, also for processes that were forked while it was held."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def acquire_folder(folder: Path, name: str, parents: bool = False) -> int:
    """Make a folder where it is missing, and `acquire` a lock file in it.

    Args:
        folder: whoever holds it may remove it.
        name: of the lock file.
        parents: make the folders above it, too.

    Raises:
        BlockingIOError: another one has it.
        OSError: it cannot be made or opened.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            folder.mkdir(parents=parents, exist_ok=True)
            return acquire(folder / name)
        except FileNotFoundError:  # whoever held it has just removed it
            if attempt == _TRIES:
                raise
    raise AssertionError("unreachable")


@contextmanager
def hold_run(run: Path, *, tidy: bool = True) -> Iterator[None]:
    """Hold a run's folder until the block ends, or the process does, however it does.

    Args:
        run: made where it is missing.
        tidy: at the end, remove what was made here if nothing has been written to it. After an interruption, what a
            run was to train stays: it can be resumed.

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    made = [path for path in (run, *run.parents) if not path.exists()]
    try:
        lock = acquire_folder(run, LOCK_FILE, parents=True)
    except BlockingIOError:
        raise UsageError(
            f"{run}: another process trains in this folder", hint="wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UsageError(f"{run}: cannot be written: {error.strerror}", hint="choose another --out") from error
    try:
        yield
    except KeyboardInterrupt:
        tidy = tidy and not (run / BEGUN_FILE).exists()
        raise
    finally:
        if tidy:
            _remove_unused(run, made)
        release(lock)


def is_unused(run: Path) -> bool:
    """Is there nothing in this folder, but perhaps the lock and the recipe of a run that was killed as it started?"""
    return all(path.name in (LOCK_FILE, BEGUN_FILE) for path in run.iterdir())


def _remove_unused(run: Path, made: Sequence[Path]) -> None:
    with suppress(OSError):  # another process may have begun to use it
        if is_unused(run):
            (run / BEGUN_FILE).unlink(missing_ok=True)
            (run / LOCK_FILE).unlink()
            for path in made:
                path.rmdir()


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Hold the name `target` while it is written, and say in one line why it cannot be.

    Raises:
        UsageError: another process is writing it, or it cannot be written.
        TclError: the disk is full.
    """
    lock_file = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(lock_file)
        except BlockingIOError:
            raise UsageError(
                f"{target}: another process is writing it", hint="wait for it, or choose another --out"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):
                lock_file.unlink()
            release(lock)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TclError(
                f"{target}: not enough disk space; nothing is left of it", hint="free some, or choose another --out"
            ) from error
        raise UsageError(
            f"{target}: cannot be written: {error.strerror or error}", hint="choose another --out"
        ) from error
