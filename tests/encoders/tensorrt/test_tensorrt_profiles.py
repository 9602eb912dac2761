"""Which shapes an engine takes, and how others are brought to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl.encoders.tensorrt.profiles import Profiles, Range, fit_lengths, split
from tcl.encoders.tensorrt.session import buffer_bytes
from tcl.errors import UsageError

IMAGES = {"pixel_values": ("batch", 3, 32, 32)}
TEXTS = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}


def test_defaults_and_what_is_given() -> None:
    profiles = Profiles.parse(["image=1,8,16", "length=3,10,20"], max_length=25)
    assert profiles.of(IMAGES)["pixel_values"] == (Range(1, 8, 16), (3, 3, 3), (32, 32, 32), (32, 32, 32))
    assert profiles.of(TEXTS)["input_ids"] == (Range(1, 64, 256), Range(3, 10, 20))
    assert Profiles.parse([], 25).of(TEXTS)["attention_mask"][1] == Range(1, 25, 25)


def test_graphs_of_both_have_a_range_of_their_own() -> None:
    profiles = Profiles.parse(["pair=2,3,4", "answers=1,5,9"], 25)
    ranges = profiles.of({**TEXTS, "image_key_values": ("images", 2), "answer_ids": ("answers", "answer_sequence")})
    assert ranges["input_ids"][0] == Range(2, 3, 4)
    assert ranges["image_key_values"][0] == Range(1, 3, 4)  # one image may stand for all texts
    assert ranges["answer_ids"] == (Range(1, 5, 9), Range(2, 8, 16))


def test_json_and_back() -> None:
    profiles = Profiles.parse(["text=1,2,3"], 25)
    assert Profiles.from_json(profiles.to_json()) == profiles


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image", "not three whole numbers"),
        ("image=1,2", "not three whole numbers"),
        ("image=1,2,3,4", "not three whole numbers"),
        ("image=1,x,3", "not three whole numbers"),
        ("image=1,1.5,3", "not three whole numbers"),
        ("image=8,4,16", "must not fall"),
        ("image=1,8,4", "must not fall"),
        ("image=0,4,8", "must be 1 or more"),
        ("image=-1,4,8", "must be 1 or more"),
        ("answer-length=1,4,8", "must be 2 or more"),
        ("image=1,2,99999999999", "at most"),
        ("images=1,2,3", "no such kind of axis"),
        ("=1,2,3", "no such kind of axis"),
    ],
)
def test_nonsense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Profiles.parse([text], 25)
    assert text in caught.value.message and caught.value.hint


def test_twice() -> None:
    with pytest.raises(UsageError, match="image is given twice"):
        Profiles.parse(["image=1,2,3", "image=1,2,4"], 25)


@given(st.integers(0, 700), st.integers(1, 40), st.integers(0, 300))
def test_a_batch_is_split_into_what_an_engine_takes(count: int, smallest: int, more: int) -> None:
    allowed = Range(smallest, smallest, smallest + more)
    chunks = split(count, allowed)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(count))
    assert all(smallest <= chunk.rows <= allowed.largest for chunk in chunks)
    assert all(chunk.rows == max(chunk.stop - chunk.start, smallest) for chunk in chunks)
    assert len(chunks) == -(-count // allowed.largest)


def _fitted(ids: list[list[int]], mask: list[list[int]], allowed: Range) -> tuple[list[list[int]], list[list[int]]]:
    feed = {"input_ids": np.array(ids), "attention_mask": np.array(mask)}
    ranges = {name: (Range(1, 1, 9), allowed) for name in feed}
    found = [fit_lengths(name, array, TEXTS, ranges, feed).tolist() for name, array in feed.items()]
    return found[0], found[1]


def test_texts_are_padded_and_padding_is_cut() -> None:
    assert _fitted([[5, 6]], [[1, 1]], Range(4, 4, 8)) == ([[5, 6, 0, 0]], [[1, 1, 0, 0]])
    assert _fitted([[5, 6, 7]], [[1, 1, 0]], Range(1, 2, 2)) == ([[5, 6]], [[1, 1]])
    assert _fitted([[5, 6]], [[1, 1]], Range(1, 2, 2)) == ([[5, 6]], [[1, 1]])


def test_a_text_that_is_too_long() -> None:
    with pytest.raises(UsageError, match="3 tokens is longer than the engine takes, 2") as caught:
        _fitted([[5, 6, 7], [5, 0, 0]], [[1, 1, 1], [1, 0, 0]], Range(1, 2, 2))
    assert "--profile length=1,2,3" in str(caught.value.hint)


def test_buffer_bytes() -> None:
    assert buffer_bytes((256, 3, 384, 384), np.dtype("uint8")) == 256 * 3 * 384 * 384
    assert buffer_bytes((70_000, 70_000), np.dtype("float32")) == 19_600_000_000  # more than 32 bits
    assert buffer_bytes((0, 16), np.dtype("float16")) == 1
