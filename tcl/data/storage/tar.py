"""Where each member of a tar archive stands, from its headers alone.

The formats of GNU tar, POSIX (pax) and their ancestors. `tarfile` of the standard library takes several times as long,
and ends in silence where an archive is cut off or damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tcl.errors import DataError

_BLOCK = 512
_MAX_NAME_BYTES = 1 << 20  # of an extended header: longer ones are an attack
_PLAIN = (b"0", b"\0", b"7")
_REFUSED = {
    b"1": "a hard link, not a file",
    b"2": "a symbolic link, not a file",
    b"3": "a device, not a file",
    b"4": "a device, not a file",
    b"6": "a pipe, not a file",
}


_LONGEST_END = 1 << 20
"""Bytes that an end mark and its padding may have; tools pad to 10 kB."""


class Damaged(Exception):
    """The archive cannot be read on from here; what was given before is good."""


class NotATar(Damaged):
    """The file does not begin as a tar archive does."""


class Member(NamedTuple):
    """A file in an archive.

    Args:
        name: as written; bytes that are not UTF-8 as surrogates.
        offset: of its first byte in the archive.
        size: in bytes.
        refused: why it is no plain file, else empty.
    """

    name: str
    offset: int
    size: int
    refused: str = ""


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """Members in the order of the archive; folders are left out.

    Raises:
        NotATar: it is something else.
        Damaged: the archive is empty, cut off, or not readable from some place on.
    """
    end = os.fstat(file.fileno()).st_size
    if not end:
        raise Damaged("the file is empty")
    position = 0
    extended: dict[str, str] = {}  # what headers before a member say about it
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header:
            raise Damaged("cut off: it has no end mark")
        if len(header) == _BLOCK and not any(header):
            _check_end(file, position, end)
            return
        size = _check(header, position)
        kind, position = header[156:157], position + _BLOCK
        if kind in (b"L", b"K", b"x", b"g"):
            content = file.read(_extension_size(size, position, end))
            if kind == b"L":
                extended["path"] = _decode(content)
            elif kind == b"x":
                extended |= _pax_records(content, position)
            position += _padded(size)
            continue
        name = extended.get("path") or _name(header)
        if "size" in extended:
            size = _decimal(extended["size"], position)
        sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in extended)
        extended = {}
        if kind == b"5" or name.endswith("/"):
            continue
        if sparse:
            raise Damaged(f"byte {position}: {_readable(name)} is a sparse file; pack the shard without --sparse")
        refused = _REFUSED.get(kind, "")
        if not refused:
            if position + size > end:
                raise Damaged(f"cut off at byte {end}, inside {_readable(name)}")
            if kind not in _PLAIN:
                refused = "of an unknown kind, not a file"
        yield Member(name, position, size, refused)
        if kind not in _REFUSED:  # links and devices have no content, whatever their size says
            position += _padded(size)


def _check_end(file: BinaryIO, position: int, end: int) -> None:
    """Behind the end mark there is only padding, unless a download left zeros, or archives were put together."""
    if end - position > _LONGEST_END:
        raise Damaged(f"more than an end mark from byte {position} on: cut off, or several archives in one file?")
    if any(file.read()):
        raise Damaged(f"more data behind the end mark at byte {position}: several archives in one file?")


def _check(header: bytes, position: int) -> int:
    """The size that a header gives, once its checksum was found right."""
    if len(header) < _BLOCK:
        raise Damaged(f"cut off at byte {position + len(header)}, inside a header") if position else NotATar
    try:
        expected, size = _number(header[148:156]), _number(header[124:136])
    except ValueError:
        size = -1
    if size < 0 or sum(header) - sum(header[148:156]) + 8 * ord(" ") != expected:
        raise Damaged(f"damaged at byte {position}") if position else NotATar
    return size


def _number(digits: bytes) -> int:
    """Octal digits, or GNU's binary form of numbers that are too large for them."""
    if digits[0] & 0x80:
        return int.from_bytes(digits, "big") - (0x80 << 8 * (len(digits) - 1))
    return int(digits.partition(b"\0")[0].strip(b" ") or b"0", 8)


def _decimal(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Damaged(f"damaged at byte {position}")
    return int(text)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return _decode(name)


def _decode(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _extension_size(size: int, position: int, end: int) -> int:
    if position + size > end:
        raise Damaged(f"cut off at byte {end}, inside a header")
    if size > _MAX_NAME_BYTES:
        raise Damaged(f"damaged at byte {position}: a name of {size} bytes")
    return size


def _pax_records(content: bytes, position: int) -> dict[str, str]:
    """`LENGTH KEY=VALUE` lines; LENGTH counts the whole line, since values may hold line ends."""
    records = {}
    start = 0
    while start < len(content):
        length, _, _ = content[start : start + 20].partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content) - start:
            raise Damaged(f"damaged at byte {position}: an extended header")
        key, _, value = content[start + len(length) + 1 : start + int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start += int(length)
    return records


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _readable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


_COMPRESSED = {b"\x1f\x8b": ("gz", "gunzip"), b"\xfd7zXZ\0": ("xz", "unxz"), b"BZh": ("bz2", "bunzip2")}
_COMPRESSED[b"\x28\xb5\x2f\xfd"] = ("zst", "unzstd")


def unpack_command(name: str) -> str | None:
    """The command that unpacks a file of this name; None when the name is not that of a compressed file."""
    suffix = Path(name).suffix.lower().lstrip(".")
    suffix = {"tgz": "gz", "txz": "xz", "tbz": "bz2", "tbz2": "bz2", "tzst": "zst"}.get(suffix, suffix)
    return next((f"{program} {name}" for ending, program in _COMPRESSED.values() if ending == suffix), None)


def check_plain(file: BinaryIO, name: str) -> None:
    """Refuse an archive that is compressed.

    Raises:
        DataError: it is, with the command that unpacks it.
    """
    start = file.read(8)
    file.seek(0)
    for mark, (suffix, program) in _COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(
                f"{name} is compressed: its members cannot be read one by one",
                hint=f"unpack it: mv {name} {name}.{suffix} && {program} {name}.{suffix}",
            )
