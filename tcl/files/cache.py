"""The cache folder: copies of remote files and indexes of large data, of bounded size.

`$TCL_CACHE`, else `tcl` in `$XDG_CACHE_HOME`, else `~/.cache/tcl`. What was not used for longest is removed when the
whole is larger than `$TCL_CACHE_GB` (50). A file that a process has open stays readable for it.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tcl.errors import DataError, UsageError
from tcl.files.atomic import PARTIAL
from tcl.files.locks import acquire, release

_DEFAULT_GB = 50.0
_TOUCH_SECONDS = 60  # marks of use are this coarse, so that reading costs no writing
_ABANDONED_SECONDS = 86_400  # a partial file this old has no writer any more

_OURS = re.compile(r"\.?[0-9a-f]{40}")  # names are hashes

_unseen = math.inf  # bytes added by this process since it last looked at the size of the cache


class CacheError(DataError):
    """The cache folder cannot be written to: a matter of this machine, not of the one file that was wanted."""

    @classmethod
    def of(cls, name: str, error: OSError) -> CacheError:
        """The error of what was wanted, a file by its name, and of why it could not be put there."""
        hint = "name another folder: TCL_CACHE=/large/disk/tcl"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"free some space there, lower TCL_CACHE_GB (now {size_limit() / 1e9:g}), or {hint}"
        return cls(f"{name}: cannot write to the cache folder {cache_folder()}: {error.strerror or error}", hint)


def cache_folder() -> Path:
    """The folder; it need not exist.

    Raises:
        CacheError: it is below a folder that everybody may write to, as `/tmp`, and another user has made it.
    """
    folder = _named_folder()
    trusted = (None, 0, os.getuid())  # not there yet, of root, one's own
    for place in (folder, *folder.parents[:-1]):
        if _is_shared(place.parent) and (owner := _owner(place)) not in trusted:
            hint = "name a folder of your own: TCL_CACHE=/large/disk/tcl"
            raise CacheError(f"the cache folder {folder}: {place} belongs to another user ({owner})", hint)
    return folder


def _named_folder() -> Path:
    if folder := os.environ.get("TCL_CACHE"):
        return Path(os.path.abspath(folder))
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(os.path.abspath(folder), "tcl")
    try:
        return Path.home() / ".cache" / "tcl"
    except RuntimeError:  # an account without a home folder
        return Path(tempfile.gettempdir(), f"tcl-cache-{os.getuid()}")


def _is_shared(folder: Path) -> bool:
    """Whether everybody may make files in a folder."""
    try:
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _owner(path: Path) -> int | None:
    """Of a file, folder or link; None where there is none."""
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def size_limit() -> float:
    """Bytes that the cache may hold.

    Raises:
        UsageError: `$TCL_CACHE_GB` is not a number.
    """
    text = os.environ.get("TCL_CACHE_GB") or str(_DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise UsageError(f"TCL_CACHE_GB={text}: not a size", hint="write gigabytes, as in TCL_CACHE_GB=200")
    return gigabytes * 1e9


def touch(file: Path | int) -> None:
    """Mark a cached file, by path or descriptor, as used now."""
    with suppress(OSError):
        if time.time() - os.stat(file).st_mtime > _TOUCH_SECONDS:
            os.utime(file)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of that name, against threads and other processes; it ends with the process.

    Without a cache folder that can be written to, or on a file system without locks, nothing is held: work is done
    twice then, but files still appear whole.
    """
    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(folder / name, wait=True)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        release(lock)


def make_room(added: Path) -> None:
    """Count a file that was added, and remove what was not used for longest while the cache is too large.

    The size is looked up at the first file and after each hundredth of the limit, not at every one.
    """
    global _unseen
    limit = size_limit()
    with suppress(OSError):
        _unseen += added.stat().st_size
    if _unseen < limit / 100:
        return
    _unseen = 0.0
    entries = sorted(_entries())
    total = sum(size for _, size, _ in entries)
    for used, size, path in entries:
        abandoned = path.suffix == PARTIAL and used < time.time() - _ABANDONED_SECONDS
        if abandoned or (total > limit and path != added and path.suffix != PARTIAL):
            with suppress(OSError):
                path.unlink()
            total -= size


def _entries() -> Iterator[tuple[float, int, Path]]:
    """Time of last use, bytes and path of each file that was put here, and of no other."""
    for kind in ("index", "remote"):
        for parent, _, names in os.walk(cache_folder() / kind):
            for path in (Path(parent, name) for name in names if _OURS.match(name)):
                with suppress(OSError):  # another process was faster
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path
