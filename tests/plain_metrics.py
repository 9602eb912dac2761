"""Recall by the plain formula, on whole matrices of scores: what the ranks that `tcl` computes are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tcl.evaluation.metrics import recall_at


def positive_ranks(scores: NDArray[np.floating], positives: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Position of each query's best positive, from 0; a negative with the same score counts as ahead of it.

    Args:
        scores: [queries, candidates].
        positives: candidates that belong to each query.
    """
    ranks = np.empty(len(scores), np.int64)
    for query, (row, own) in enumerate(zip(scores, positives, strict=True)):
        best = row[own].max()
        ranks[query] = np.count_nonzero(row >= best) - np.count_nonzero(row[own] >= best)
    return ranks


def retrieval_metrics(
    score_i2t: NDArray[np.floating], score_t2i: NDArray[np.floating], image_of_text: NDArray[np.int64]
) -> dict[str, float]:
    """R@1/5/10 in both directions and their mean, in percent.

    Args:
        score_i2t: images to texts [images, texts].
        score_t2i: texts to images [texts, images].
        image_of_text: the image that each text describes [texts].
    """
    texts_of_image: list[NDArray[np.int64]] = [np.flatnonzero(image_of_text == i) for i in range(len(score_i2t))]
    result = recall_at(positive_ranks(score_i2t, texts_of_image), "i2t")
    result |= recall_at(positive_ranks(score_t2i, list(image_of_text[:, None])), "t2i")
    result["r_mean"] = float(np.mean(list(result.values())))
    return result
