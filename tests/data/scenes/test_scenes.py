"""Scenes are pure functions of their reference, their captions are true, and validation shows held-out combinations."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcl.data.scenes.layout import COLOURS, HELD_OUT, SHAPES, Scene, Shape
from tcl.data.scenes.scenes import DEFAULT_COUNT, IMAGE_SIZE, describe, render, scene, scene_rows
from tcl.data.tokenizer import clean_caption
from tcl.errors import UsageError

references = st.builds(
    "scenes:{}:{}:{}".format, st.sampled_from(["train", "val"]), st.integers(0, 999), st.integers(0, 10**9)
)
NAME = re.compile(rf"(?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def find(drawn: Scene, name: re.Match) -> Shape:
    """The one shape of a scene that a caption means."""
    size, colour, kind = name.groups()
    found = [s for s in drawn.shapes if (s.colour, s.kind) == (colour, kind) and size in (None, s.size)]
    assert len(found) == 1
    return found[0]


def left_of(a: Shape, b: Shape) -> bool:
    """Apart in x by a visible gap, and further apart in x than in y."""
    return a.x + a.radius + 0.03 < b.x - b.radius and abs(a.y - b.y) < b.x - a.x


def above(a: Shape, b: Shape) -> bool:
    return a.y + a.radius + 0.03 < b.y - b.radius


def holds(caption: str, shapes: list[Shape]) -> bool:
    """Whether the spatial statement of a caption is true of its shapes, in the order of mention."""
    if len(shapes) == 1:
        x, y, r = shapes[0].x, shapes[0].y, shapes[0].radius
        return all(
            [
                ("left" in caption) == (x - r < 0.1),
                ("right" in caption) == (x + r > 0.9),
                ("top" in caption) == (y - r < 0.1),
                ("bottom" in caption) == (y + r > 0.9),
                ("center" in caption) == (abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1),
            ]
        )
    if match := re.search("both (above|below)", caption):
        a, b, c = shapes
        if "right of" in caption:
            a, b = b, a
        pair_first = match[1] == "above"
        return left_of(a, b) and all(above(s, c) if pair_first else above(c, s) for s in (a, b))
    if "between" in caption:
        middle, first, last = shapes
        relation = left_of if "left" in caption else above
        return relation(first, middle) and relation(middle, last)
    if len(shapes) == 3 and " from " not in caption:  # "c below a and b"
        c, a, b = shapes
        return all(above(c, s) if "above" in caption else above(s, c) for s in (a, b))
    relation = left_of if "left" in caption or "right" in caption else above
    if re.search("right of|below", caption):
        shapes = shapes[::-1]
    return all(relation(a, b) for a, b in itertools.pairwise(shapes))


@given(references)
def test_captions_are_true(reference: str) -> None:
    drawn = scene(reference)
    captions = describe(reference)
    assert 2 <= len(captions) <= 4 and len(set(captions)) == len(captions)
    for caption in captions:
        shapes = [find(drawn, name) for name in NAME.finditer(caption)]
        assert len(shapes) == len(drawn.shapes) and set(shapes) == set(drawn.shapes)
        assert holds(caption, shapes), caption
        assert "a orange" not in caption
    assert all(name[1] for name in NAME.finditer(captions[0]))  # the first caption tells every size


@given(references)
@example("scenes:val:0:9150")  # a large shape above a small one at the edge
def test_shapes_stay_apart_and_inside(reference: str) -> None:
    shapes = scene(reference).shapes
    assert 1 <= len(shapes) <= 3
    for shape in shapes:
        assert shape.radius < shape.x < 1 - shape.radius and shape.radius < shape.y < 1 - shape.radius
    for a, b in itertools.combinations(shapes, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + 0.03
        assert (a.colour, a.kind) != (b.colour, b.kind)


def test_the_true_caption_check_can_fail() -> None:
    a, b = Shape("small", "red", "circle", 0.2, 0.5, 0.08), Shape("small", "blue", "star", 0.7, 0.5, 0.08)
    assert holds("a small red circle left of a small blue star", [a, b])
    assert not holds("a small red circle right of a small blue star", [a, b])
    assert not holds("a small red circle above a small blue star", [a, b])


def test_held_out_pairs_are_never_trained_on_and_always_validated() -> None:
    def pairs(split: str, index: int) -> set[tuple[str, str]]:
        return {(s.colour, s.kind) for s in scene(f"scenes:{split}:5:{index}").shapes}

    trained = set().union(*(pairs("train", i) for i in range(800)))
    assert trained == set(itertools.product(COLOURS, SHAPES)) - HELD_OUT
    assert all(pairs("val", i) & HELD_OUT for i in range(300))
    assert set().union(*(pairs("val", i) for i in range(300))) >= HELD_OUT


def test_validation_rows_have_first_captions_of_their_own() -> None:
    rows = list(scene_rows("scenes:val:1000:7"))
    assert len(rows) == len({reference for reference, _ in rows}) == 1000
    assert len({clean_caption(captions[0]) for _, captions in rows}) == 1000
    assert rows[:256] == list(scene_rows("scenes:val:256:7"))
    captions = [caption for _, captions in rows[:256] for caption in captions]
    assert len(set(captions)) > 0.97 * len(captions)


def test_the_language_is_small_and_captions_fit_the_text_encoder() -> None:
    captions = [
        clean_caption(c) for spec in ("scenes:train:2000", "scenes:val") for _, cs in scene_rows(spec) for c in cs
    ]
    assert len({word for caption in captions for word in caption.split()}) < 100
    assert max(len(caption.split()) for caption in captions) <= 24


@pytest.mark.parametrize(
    ("spec", "count", "first"),
    [
        ("scenes:", DEFAULT_COUNT["train"], "scenes:train:0:0"),
        ("scenes:val", DEFAULT_COUNT["val"], "scenes:val:0:0"),
        ("scenes:train:12", 12, "scenes:train:0:0"),
        ("scenes:val:5:7", 5, "scenes:val:7:0"),
    ],
)
def test_specifications(spec: str, count: int, first: str) -> None:
    rows = [reference for reference, _ in scene_rows(spec)]
    assert (len(rows), rows[0]) == (count, first)


@pytest.mark.parametrize(
    "spec", ["scenes:test", "scenes:train:", "scenes:train:0", "scenes:val:x", "scenes:val:1:2:3", "scenes"]
)
def test_malformed_specifications_show_the_right_form(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        scene_rows(spec)
    assert "scenes:train:8192" in caught.value.hint


@pytest.mark.parametrize("reference", ["scenes:", "scenes:val:1", "scenes:other:0:1", "scenes:val:0:-1"])
def test_malformed_references(reference: str) -> None:
    with pytest.raises(UsageError, match="not a scene"):
        render(reference)


def test_pictures_show_what_the_scene_says() -> None:
    for index in range(40):
        reference = f"scenes:val:0:{index}"
        drawn, image = scene(reference), render(reference)
        assert (image.mode, image.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
        pixels = np.asarray(image).astype(int)
        assert np.array_equal(pixels, np.asarray(render(reference)))
        assert np.abs(pixels[0, 0] - drawn.background).max() <= 1
        for shape in drawn.shapes:
            up = 0.75 if shape.kind == "ring" else 0.0  # the middle of the ring's band
            at = pixels[int((shape.y - up * shape.radius) * IMAGE_SIZE), int(shape.x * IMAGE_SIZE)]
            assert np.abs(at - COLOURS[shape.colour]).max() < 30, (reference, shape)


def test_a_scene_does_not_change_between_versions() -> None:
    assert describe("scenes:val:0:0")[0] == "a small blue circle above a small pink square"
    assert describe("scenes:train:0:0")[0] == "a large blue square above a small purple cross"
