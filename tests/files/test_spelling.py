"""Any name becomes Unicode and comes back; nothing that a name holds reaches a terminal as a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl.files.names import from_unicode, on_one_line, to_unicode


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
        ("café \\ \\n \\u00e9.jpg", "café \\ \\n \\u00e9.jpg"),  # Unicode stays as it is
        (r"caf\udce9.jpg", r"caf\u005cudce9.jpg"),  # but for what would read as an escape
        (r"\u005c", r"\u005cu005c"),
        ("\\\udce9", r"\\udce9"),
        ("\ud83d\ude00", r"\ud83d\ude00"),
    ],
)
def test_names(name: str, spelt: str) -> None:
    assert to_unicode(name) == spelt and from_unicode(spelt) == name


@given(st.text(alphabet="\\u05cde9\udce9\ud83dé\n", max_size=20))
def test_every_name_comes_back(name: str) -> None:
    assert from_unicode(to_unicode(name).encode("utf-8").decode("utf-8")) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("日本 語\u3000\u00a0👩\u200d🚀.png", "日本 語\u3000\u00a0👩\u200d🚀.png"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x1b[31mred\x7f\x9b", r"\x1b[31mred\x7f\x9b"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
    ],
)
def test_on_one_line(text: str, shown: str) -> None:
    assert on_one_line(text) == shown
