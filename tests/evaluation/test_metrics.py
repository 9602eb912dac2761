"""Recall and accuracy against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl.evaluation.metrics import ClassFigures, accuracy, class_table, recall_at
from tests.plain_metrics import positive_ranks, retrieval_metrics


def test_ranks_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.3], [0.5, 0.1, 0.4]])
    positives = [np.array([1]), np.array([1]), np.array([1, 2])]
    # Second of three; tied with a negative, which counts as ahead; best positive (0.4) behind one.
    assert positive_ranks(scores, positives).tolist() == [1, 1, 1]
    assert recall_at(np.array([0, 3, 4, 5, 9, 10]), "x") == {
        "x_r1": pytest.approx(100 / 6),
        "x_r5": pytest.approx(50),
        "x_r10": pytest.approx(500 / 6),
    }


def test_perfect_and_useless_scores() -> None:
    image_of_text = np.array([0, 0, 1, 2])
    perfect = np.eye(3)[:, image_of_text]
    assert set(retrieval_metrics(perfect, perfect.T, image_of_text).values()) == {100.0}
    constant = np.zeros((3, 4))
    result = retrieval_metrics(constant, constant.T, image_of_text)
    assert result["i2t_r1"] == result["t2i_r1"] == 0.0


@settings(max_examples=30, deadline=None)
@given(images=st.integers(2, 8), texts=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_recall_grows_with_k_and_equals_a_sort(images: int, texts: int, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(images * images * texts).reshape(images, -1).astype(float)
    image_of_text = np.arange(images).repeat(texts)
    result = retrieval_metrics(scores, scores.T, image_of_text)
    assert result["i2t_r1"] <= result["i2t_r5"] <= result["i2t_r10"]
    first = image_of_text[np.argsort(-scores, axis=1)[:, 0]]
    assert result["i2t_r1"] == pytest.approx(100 * np.mean(first == np.arange(images)))


def test_classes_by_hand() -> None:
    wanted = np.array([0, 0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 1, 1, 1, 0, 2])
    assert accuracy(predicted, wanted) == pytest.approx(300 / 7)
    table = class_table(predicted, wanted, ["a", "b", "c", "d", "e"])
    # Harmonic means: 2 * 50 * 66.7 / 116.7 and 2 * 50 * 33.3 / 83.3.
    assert table[0] == ClassFigures("a", 4, 50, pytest.approx(200 / 3), pytest.approx(400 / 7))
    assert table[1] == ClassFigures("b", 2, 50, pytest.approx(100 / 3), pytest.approx(40))
    assert table[2] == ClassFigures("c", 0, None, 0, 0)  # taken for it once, never wanted
    assert table[3] == ClassFigures("d", 1, 0, None, 0)
    assert table[4] == ClassFigures("e", 0, None, None, None)
