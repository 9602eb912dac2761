"""Names come in the order in which people expect them, the same on every machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcl.files.names import natural_key


def test_natural_order() -> None:
    ordered = [
        "1.jpg",
        "2.jpg",
        "02.jpg",
        "10.jpg",
        "a/1.jpg",
        "A/2.jpg",
        "a/10/1.jpg",
        "a2b3.jpg",
        "a2b20.jpg",
        "b.jpg",
    ]
    ordered.sort(key=natural_key)
    assert ordered.index("2.jpg") < ordered.index("10.jpg")
    assert ordered.index("a/1.jpg") < ordered.index("A/2.jpg")
    assert ordered.index("a2b3.jpg") < ordered.index("a2b20.jpg")
    assert natural_key("9" * 5000) < natural_key("1" + "0" * 5000)


@given(st.lists(st.text(alphabet="aAbB019/.ßé²", max_size=8), max_size=6))
def test_natural_order_is_total(paths: list[str]) -> None:
    assert sorted(paths, key=natural_key) == sorted(sorted(paths), key=natural_key)
    assert len({natural_key(path) for path in paths}) == len(set(paths))
