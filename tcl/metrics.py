"""Metrics of retrieval and classification, as published. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError

RANKS = (1, 5, 10)
NAN_HINT = "evaluate an earlier checkpoint of the run"


def recall_at(ranks: NDArray[np.int64], prefix: str) -> dict[str, float]:
    """Share of queries, in percent, whose best positive is among the first 1, 5 and 10."""
    return {f"{prefix}_r{k}": float(100.0 * np.mean(ranks < k)) for k in RANKS}


def positive_ranks(scores: NDArray[np.floating], positives: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Position of each query's best positive, from 0.

    A negative with the same score counts as ahead of it, so ties never flatter.

    Raises:
        DataError: a score is not a number.

    Args:
        scores: [queries, candidates].
        positives: candidates that belong to each query.
    """
    if np.isnan(scores).any():
        raise DataError("similarities are not numbers: the model's weights or inputs are not finite", hint=NAN_HINT)
    ranks = np.empty(len(scores), np.int64)
    for query, (row, own) in enumerate(zip(scores, positives, strict=True)):
        best = row[own].max()
        ranks[query] = np.count_nonzero(row >= best) - np.count_nonzero(row[own] >= best)
    return ranks


def retrieval_metrics(
    score_i2t: NDArray[np.floating], score_t2i: NDArray[np.floating], image_of_text: NDArray[np.int64]
) -> dict[str, float]:
    """R@1/5/10 in both directions and their means, in percent.

    Args:
        score_i2t: images to texts [images, texts].
        score_t2i: texts to images [texts, images].
        image_of_text: the image that each text describes [texts].

    Returns:
        `i2t_r1` ... `t2i_r10` (image to text is the papers' TR, text to image their IR), and `r_mean` of the six.
    """
    texts_of_image: list[NDArray[np.int64]] = [np.flatnonzero(image_of_text == i) for i in range(len(score_i2t))]
    result = recall_at(positive_ranks(score_i2t, texts_of_image), "i2t")
    result |= recall_at(positive_ranks(score_t2i, list(image_of_text[:, None])), "t2i")
    result["r_mean"] = float(np.mean(list(result.values())))
    return result


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
