r"""Names that are no Unicode, spelt alike in files, in databases and on terminals. Imports no torch.

A byte of a file name that is not UTF-8 is a half surrogate in Python, and in JSON its escape: `"caf\udce9.jpg"`. Where
nothing but Unicode may stand, the six characters of that escape stand for it.
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
