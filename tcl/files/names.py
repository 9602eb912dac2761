r"""Names of files: the order in which people expect them, and the spelling of those that are no Unicode.

`2.jpg` comes before `10.jpg`. A byte of a file name that is not UTF-8 is a half surrogate in Python, and in JSON its
escape: `"caf\udce9.jpg"`. Where nothing but Unicode may stand, the six characters of that escape stand for it.
"""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(r"\\u(005c|d[89a-f][0-9a-f]{2})")  # of a backslash, or of half a surrogate pair
_LIKE_ONE = re.compile(r"\\(?=u(?:005c|d[89a-f][0-9a-f]{2}))")
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # kinds of characters that move the cursor, hide, or turn the direction
_JOINERS = "\u200c\u200d"  # within words and emoji


def to_unicode(text: str) -> str:
    r"""Any string as Unicode that `from_unicode` reads back.

    What is no Unicode becomes `\udce9`, and only a backslash that would read so becomes `\u005c`.
    """
    return _LIKE_ONE.sub(r"\\u005c", text).encode("utf-8", "backslashreplace").decode("utf-8")


def from_unicode(text: str) -> str:
    """The string that `to_unicode` was given."""
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)


def on_one_line(text: str) -> str:
    r"""A string as a terminal can show it: line breaks, controls and what is no Unicode as `\n`, `\x1b`, `\udce9`."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) in _CONTROLS and character not in _JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character


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
