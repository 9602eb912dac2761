"""The order in which people expect names: `2.jpg` before `10.jpg`. Imports no torch."""

from __future__ import annotations

import re
import unicodedata

_NUMBER = re.compile("([0-9]+)")


def natural_key(path: str) -> bytes:
    """Sort key under which `2.jpg` precedes `10.jpg`: a total order, the same on every machine.

    Folders are compared name by name, numbers by value, letters without regard to case; what is still equal is ordered
    by the path itself.
    """
    folded = unicodedata.normalize("NFKC", path).casefold()
    # What ends a piece of text sorts before every character that could continue it, and the end of the path first.
    parts = b"\1".join(_ordered(part) for part in folded.split("/"))
    return parts + b"\0" + path.encode("utf-8", "surrogatepass")


def _ordered(part: str) -> bytes:
    chunks = [chunk.encode("utf-8", "surrogatepass") for chunk in _NUMBER.split(part)]
    for i in range(1, len(chunks), 2):
        digits = chunks[i].lstrip(b"0")
        chunks[i] = b"\2" + len(digits).to_bytes(4, "big") + digits  # compares as the number does, however long
    return b"".join(chunks)
