"""VQA's soft accuracy against hand-computed cases and a transcription of its definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl.evaluation.metrics import CONTRACTIONS, answer_type, normalise_answer, soft_accuracy


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("The Dog", "dog"),
        ("an apple", "apple"),
        ("  two\n dogs\t", "2 dogs"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("oclock", "o'clock"),
        ("girl's", "girl's"),
        ("2:30 pm", "2:30 pm"),
        ("yes, sir", "yes sir"),
        ("black/white", "black white"),
        ("black / white", "black  white".replace("  ", " ")),
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt"),
        ("1,000", "1000"),
        ("1,000 (about)", "1000 about"),
        ("left,right", "left right"),
        ("3.5", "3.5"),
        ("p.m.", "pm"),
        ("no.", "no"),
        ("wow!", "wow"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalisation(written: str, compared: str) -> None:
    assert normalise_answer(written) == compared


def test_contractions_lack_one_apostrophe() -> None:
    assert CONTRACTIONS["arent"] == "aren't"
    assert CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ows'at"] == CONTRACTIONS["'ow'sat"] == "'ow's'at"
    for word in ("well", "were", "hell", "its", "lets", "shed", "ill", "id"):  # words of their own
        assert word not in CONTRACTIONS


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_people(agree: int, accuracy: float) -> None:
    people = ["A cat."] * agree + [f"other {number}" for number in range(10 - agree)]
    assert soft_accuracy("cat", people) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("people", "accuracy"),
    [
        (["cat"], 1),
        (["dog"], 0),
        (["dog", "cat"], 1),
        (["dog", "dog", "cat"], 1),
        (["cat"] * 4, 1),
        (["cat"] * 3 + ["dog"], 0.75),
    ],
)
def test_few_people(people: list[str], accuracy: float) -> None:
    assert soft_accuracy("cat", people) == pytest.approx(accuracy)


@settings(max_examples=50, deadline=None)
@given(people=st.lists(st.sampled_from(["yes", "no", "2", "dog"]), min_size=4, max_size=12))
def test_soft_accuracy_is_the_mean_over_people(people: list[str]) -> None:
    scores = []
    for person in range(len(people)):
        others = people[:person] + people[person + 1 :]
        scores.append(min(others.count("yes") / 3, 1))
    assert soft_accuracy("yes", people) == pytest.approx(sum(scores) / len(scores))


def test_answer_types() -> None:
    assert answer_type(["Yes", "no", "yes"]) == "yes/no"
    assert answer_type(["two", "2", "many"]) == "number"
    assert answer_type(["3.5"]) == "number"
    assert answer_type(["red"]) == "other"
