"""Statements about scenes are true or false as they say, differ in one thing, and regions are where the shapes are."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given

from tcl.data.scenes.labels import FALSE, TRUE, scene_regions, scene_statements
from tcl.data.scenes.layout import COLOURS, HELD_OUT
from tcl.data.scenes.scenes import render, scene
from tests.data.scenes.test_scenes import NAME, holds, references


def is_true(sentence: str, reference: str) -> bool:
    """Whether the scene has every shape that is named, and has them where the sentence says."""
    shapes = []
    for name in NAME.finditer(sentence):
        size, colour, kind = name.groups()
        found = [s for s in scene(reference).shapes if (s.colour, s.kind) == (colour, kind) and size in (None, s.size)]
        if not found:
            return False
        shapes += found
    return holds(sentence, shapes)


@given(references)
def test_labels_are_right(reference: str) -> None:
    statements = scene_statements(reference)
    assert [label for _, label, _ in statements] == [TRUE, FALSE] * 2
    for sentence, label, _ in statements:
        assert is_true(sentence, reference) == (label == TRUE), sentence
    assert statements == scene_statements(reference)


def test_what_is_false_differs_and_no_word_tells() -> None:
    """Training statements, true or false, speak of the same combinations; no word occurs in one kind alone."""
    pairs: dict[str, set[tuple[str, str]]] = {TRUE: set(), FALSE: set()}
    words: dict[str, Counter[str]] = {TRUE: Counter(), FALSE: Counter()}
    for index in range(1500):
        for sentence, label, _ in scene_statements(f"scenes:train:0:{index}"):
            pairs[label] |= {(name[2], name[3]) for name in NAME.finditer(sentence)}
            words[label].update(sentence.split())
    assert pairs[TRUE] == pairs[FALSE] and not pairs[FALSE] & HELD_OUT
    for word, count in words[TRUE].items():
        assert 0.6 < words[FALSE][word] / count < 1.6, word


def test_regions_hold_their_shapes() -> None:
    for index in range(30):
        reference = f"scenes:val:0:{index}"
        pixels = np.asarray(render(reference)).astype(int)
        regions = scene_regions(reference)
        assert [text for text, _ in regions] == [f"a {shape.name}" for shape in scene(reference).shapes]
        for text, (x, y, width, height) in regions:
            inside = pixels[round(y) : round(y + height), round(x) : round(x + width)].reshape(-1, 3)
            near = np.abs(inside - COLOURS[text.split()[2]]).max(axis=1) < 30
            assert near.mean() > 0.25, (reference, text)
            assert width == height and x > 0 and x + width < pixels.shape[1]
