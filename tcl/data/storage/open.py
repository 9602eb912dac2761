"""Where the bytes of an image are: in a file, behind a URL, or in a tar shard.

A member of a shard is named `SHARD!MEMBER@OFFSET+SIZE`, where SHARD is a path or URL, and OFFSET and SIZE say in bytes
where its content stands. In MEMBER `!`, `%` and control characters are written as `%21` and so on, so the last `!`
ends the shard's name.
"""

from __future__ import annotations

import math
import os
import re
import stat
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO

from tcl.errors import UsageError, without_secrets
from tcl.files.cache import touch
from tcl.files.remote import MOST_BYTES, fetch_named, is_url, local_copy

_MEMBER = re.compile(r"(.+)!([^!]*)@([0-9]+)\+([0-9]+)", re.DOTALL)
_SPECIAL = re.compile(r"[!%\x00-\x1f\x7f]")
_OPEN_SHARDS = 32  # per process

NOT_A_FILE = "a pipe or device, not a file"


def member_reference(shard: str, member: str, offset: int, size: int) -> str:
    """The reference under which `open_binary` finds a member of a tar shard.

    Args:
        shard: path or URL.
        member: its name, for people to read.
        offset: of its first byte.
        size: in bytes.
    """
    return f"{shard}!{_SPECIAL.sub(lambda found: f'%{ord(found[0]):02X}', member)}@{offset}+{size}"


def shard_of(reference: str) -> str:
    """The shard that a reference names a member of; empty where it names none."""
    member = _MEMBER.fullmatch(reference)
    return member[1] if member else ""


def blocks(path: str) -> bool:
    """Whether it is a pipe or device: one would be waited for forever, the other be read forever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # what is no path, or not there, is told by whoever opens it
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_regular(path: str) -> None:
    """Refuse a source that is read more than once, and to its end.

    Raises:
        UsageError: it is a pipe or device.
    """
    if blocks(path):
        raise UsageError(f"{path}: {NOT_A_FILE}", hint="write what it gives to a file first")


def open_binary(reference: str) -> BinaryIO:
    """Open what an image reference names, for reading, seekable.

    A remote file is copied to the cache folder first. References come from files of data, so a URL is one that these
    may name, see `tcl.files.named`.

    Args:
        reference: a path, a URL, or a member of a tar shard.

    Raises:
        OSError: it is not there, or cannot be read.
        UsageError: no package for its URL is installed.
    """
    if member := _MEMBER.fullmatch(reference):
        return BytesIO(_read_member(member[1], int(member[3]), int(member[4])))
    if is_url(reference):
        return os.fdopen(_open_copy(reference, MOST_BYTES), "rb")
    return open(reference, "rb")


class _Shard:
    """A shard that is open: closed when nobody refers to it any more, so that no thread loses it while reading."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.remote = is_url(name)
        self.handle = -1
        if not self.remote and blocks(name):
            raise OSError(f"{name} is {NOT_A_FILE}")
        self.handle = _open_copy(name) if self.remote else os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    def is_current(self) -> bool:
        """Whether the name still stands for this file; of a copy that was removed to make room it does."""
        try:
            return os.path.samestat(os.stat(local_copy(self.name) if self.remote else self.name), os.fstat(self.handle))
        except FileNotFoundError:
            return self.remote

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset; does not move a position, which processes after a fork would share."""
        available = os.fstat(self.handle).st_size
        if offset + size > available:
            raise OSError(f"{self.name} is cut off: {available} bytes, and this member ends at {offset + size}")
        if self.remote:
            touch(self.handle)
        content = os.pread(self.handle, size, offset)
        if len(content) < size:
            raise OSError(f"{self.name}: {len(content)} of {size} bytes could be read")
        return content

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


_shard = lru_cache(_OPEN_SHARDS)(_Shard)


def _read_member(name: str, offset: int, size: int) -> bytes:
    shard = _shard(name)
    if not shard.is_current():  # gone, or written anew since it was opened
        _shard.cache_clear()
        shard = _shard(name)
    return shard.read(offset, size)


def _open_copy(url: str, most: float = math.inf) -> int:
    """Open the local copy of a remote file; one that was removed to make room is fetched again."""
    for _ in range(2):
        try:
            return os.open(fetch_named(url, most), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if error.filename == url:  # it is the remote that does not have it
                raise
    raise OSError(
        f"{without_secrets(url)}: its copy is removed from the cache folder at once; TCL_CACHE_GB may be too small"
    )
