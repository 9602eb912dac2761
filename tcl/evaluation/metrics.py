"""Metrics of retrieval and classification, as published. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANKS = (1, 5, 10)
NAN_HINT = "evaluate an earlier checkpoint of the run"


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
