"""Metrics of retrieval, classification and question answering, as published.

Answers to questions have soft accuracy, by the rules of the VQA challenge. They are compared after normalisation: lower
case, number words as digits, no articles, no punctuation but apostrophes and colons, apostrophes put back into
contractions. An answer is right to the degree that people gave it: fully, where three others did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANKS = (1, 5, 10)
NAN_HINT = "evaluate an earlier checkpoint of the run"


def percent(value: float | None) -> object:
    """A share as tables show it, with one digit; `-` where there is none."""
    return "-" if value is None else round(value, 1)


def recall_at(ranks: NDArray[np.int64], prefix: str) -> dict[str, float]:
    """Share of queries, in percent, whose best positive is among the first 1, 5 and 10."""
    return {f"{prefix}_r{k}": float(100.0 * np.mean(ranks < k)) for k in RANKS}


@dataclass
class ClassFigures:
    """One class among the predictions; shares in percent, None where nothing can be divided by.

    Attributes:
        label: the class.
        rows: rows that have it.
        recall: share of them that were found.
        precision: share of what was taken for this class that is of it.
        f1: harmonic mean of both.
    """

    label: str
    rows: int
    recall: float | None
    precision: float | None
    f1: float | None


def class_table(predicted: NDArray[np.int64], wanted: NDArray[np.int64], labels: Sequence[str]) -> list[ClassFigures]:
    """A line per class, in the order of `labels`.

    Args:
        predicted: class numbers [N].
        wanted: the right ones [N].
    """
    return [_figures(predicted == number, wanted == number, label) for number, label in enumerate(labels)]


def _figures(predicted: NDArray[np.bool_], wanted: NDArray[np.bool_], label: str) -> ClassFigures:
    hits, rows, taken = (int(np.count_nonzero(mask)) for mask in (predicted & wanted, wanted, predicted))
    recall, precision, f1 = (
        100.0 * part / whole if whole else None
        for part, whole in ((hits, rows), (hits, taken), (2 * hits, rows + taken))
    )
    return ClassFigures(label, rows, recall, precision, f1)


def accuracy(predicted: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Share of right predictions in percent, each [N] with N > 0."""
    return float(100.0 * np.mean(predicted == wanted))


ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_FEW_PEOPLE = 4  # fewer cannot make an answer fully right by the rule of three others


def _one_apostrophe_missing(contraction: str) -> list[str]:
    places = [place for place, character in enumerate(contraction) if character == "'"]
    return [contraction[:place] + contraction[place + 1 :] for place in places]


CONTRACTIONS = {wrong: right for right in _CONTRACTIONS.split() for wrong in _one_apostrophe_missing(right)}
"""What lacks one apostrophe, and how it is written."""


def normalise_answer(answer: str) -> str:
    """The form in which answers are compared.

    Punctuation beside a space vanishes, and so does all of it in an answer with a number like 1,000; elsewhere it
    becomes a space. A period vanishes unless a digit follows.
    """
    text = " ".join(answer.split())
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, 0 to 1: the mean over each person of `min(others with this answer / 3, 1)`.

    With the ten answers of VQA v2 that is 0.3 for one that agrees, 0.6, 0.9, then 1. Where fewer than four people
    answered, as in data of one's own, an answer that anyone gave is right.

    Args:
        answer: the model's.
        people: everyone's; at least one.
    """
    given = [normalise_answer(person) for person in people]
    agree = given.count(normalise_answer(answer))
    if len(given) < _FEW_PEOPLE:
        return float(agree > 0)
    apart, among = min(agree / 3, 1.0), min((agree - 1) / 3, 1.0)  # seen by who disagrees, and by who agrees
    return ((len(given) - agree) * apart + agree * among) / len(given) if agree else 0.0


def answer_type(people: Sequence[str]) -> str:
    """`yes/no`, `number` or `other`, by the answer that most people gave; as VQA v2 sorts its questions."""
    given = [normalise_answer(person) for person in people]
    most = max(given, key=given.count)
    if most in ("yes", "no"):
        return "yes/no"
    return "number" if most.replace(".", "", 1).isdecimal() else "other"
