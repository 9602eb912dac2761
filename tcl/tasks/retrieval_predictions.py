"""Who comes first for each query of a retrieval evaluation, as lines of a JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tcl.evaluation.reranking import VectorRanking

LISTED = 10
"""Candidates that a line lists, as deep as the deepest recall."""


@dataclass
class RankedSet:
    """Images and texts with what the model ranks first for each.

    Letters: I images, T texts, K candidates that were re-ranked.

    Attributes:
        images: one reference per image.
        texts: every caption.
        image_of_text: the image that each text describes [T].
        ranking: by vectors, at least `LISTED` candidates where the set has as many.
        by_vectors: rank of the best right candidate of each image [I] and text [T], from 0.
        reranked: the same, re-ranked.
        candidate_scores: match logits of the first K candidates in `ranking`, [I, K] and [T, K].
    """

    images: list[str]
    texts: list[str]
    image_of_text: Tensor
    ranking: VectorRanking
    by_vectors: tuple[Tensor, Tensor]
    reranked: tuple[Tensor, Tensor] | None = None
    candidate_scores: tuple[Tensor, Tensor] | None = None

    def predictions(self) -> Iterator[dict[str, Any]]:
        """A line per query: first every image with its nearest texts, then every text with its nearest images.

        `rank` is that of the best right candidate, from 1, so that recall at k is the share of lines whose rank is at
        most k; of a query none of whose right candidates was re-ranked, it is behind all wrong ones.
        """
        for image, name in enumerate(self.images):
            right = self.image_of_text[self.ranking.of_image[image]] == image
            yield {"query": "image", "image": name} | self._lists(0, image, right)
        for text, caption in enumerate(self.texts):
            own = int(self.image_of_text[text])
            right = self.ranking.of_text[text] == own
            query = {"query": "text", "text_id": text, "text": caption, "image": self.images[own]}
            yield query | self._lists(1, text, right)

    def _lists(self, side: int, query: int, right: Tensor) -> dict[str, Any]:
        nearest = (self.ranking.of_image, self.ranking.of_text)[side][query]
        cosines = (self.ranking.image_scores, self.ranking.text_scores)[side][query]
        first = torch.arange(len(nearest))[:LISTED]
        lists = {"vectors": self._list(side, int(self.by_vectors[side][query]), first, nearest, cosines, right)}
        if self.reranked is not None and self.candidate_scores is not None:
            scores = self.candidate_scores[side][query]
            first = scores.argsort(descending=True, stable=True)[:LISTED]
            lists["reranked"] = self._list(side, int(self.reranked[side][query]), first, nearest, scores, right)
        return lists

    def _list(
        self, side: int, rank: int, first: Tensor, nearest: Tensor, scores: Tensor, right: Tensor
    ) -> dict[str, Any]:
        """The candidates at the places `first` of a query's list."""
        top = [
            self._named(side, candidate) | {"score": score, "right": hit}
            for candidate, score, hit in zip(
                nearest[first].tolist(), scores[first].tolist(), right[first].tolist(), strict=True
            )
        ]
        return {"rank": rank + 1, "top": top}

    def _named(self, side: int, candidate: int) -> dict[str, Any]:
        if side == 0:
            return {"text_id": candidate, "text": self.texts[candidate]}
        return {"image": self.images[candidate]}
