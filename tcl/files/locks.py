"""A run folder, or a file being written, belongs to one process at a time: whoever comes second hears it at once."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tcl.errors import TclError, UsageError

LOCK_FILE = ".lock"
_TRIES = 10


@contextmanager
def hold_run(run: Path, *, tidy: bool = True) -> Iterator[None]:
    """Hold a run's folder until the block ends, or the process does, however it does.

    Args:
        run: made where it is missing.
        tidy: at the end, remove what was made here if nothing has been written to it.

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    made = [path for path in (run, *run.parents) if not path.exists()]
    descriptor = _lock(run)
    try:
        yield
    finally:
        if tidy:
            _remove_unused(run, made)
        with suppress(OSError):  # not only closed: a loader process that lives a moment longer has it too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def is_unused(run: Path) -> bool:
    """Is there nothing in this folder, but perhaps the lock of a run that was killed as it started?"""
    return all(path.name == LOCK_FILE for path in run.iterdir())


def _lock(run: Path) -> int:
    path = run / LOCK_FILE
    for _ in range(_TRIES):  # a process that is just tidying up may remove folder or file in between
        try:
            run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{run}: cannot be written: {error.strerror}", hint="choose another --out") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"{run}: another process trains in this folder", hint="wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
    raise UsageError(f"{run}: disappears as soon as it is made", hint="choose another --out")


def _remove_unused(run: Path, made: Sequence[Path]) -> None:
    with suppress(OSError):  # another process may have begun to use it
        if is_unused(run):
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
    lock = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{target}: another process is writing it", hint="wait for it, or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            else:
                # Whoever had it may have removed the file just now, and someone else may have made it anew.
                if not lock.exists() or not os.path.samestat(os.fstat(handle), lock.stat()):
                    raise UsageError(f"{target}: another process is writing it", hint="choose another --out")
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TclError(
                f"{target}: not enough disk space; nothing is left of it", hint="free some, or choose another --out"
            ) from error
        raise UsageError(
            f"{target}: cannot be written: {error.strerror or error}", hint="choose another --out"
        ) from error
