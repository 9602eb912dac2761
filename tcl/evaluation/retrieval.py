"""Image-text retrieval: by vectors alone, and with the best candidates re-ranked by the fusion encoder.

Beside the metrics, `RankedSet` has what came first for each query, as lines of a JSONL file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl.data.images.decode import IMAGES_HINT
from tcl.data.pairs.table import PairIndex
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError
from tcl.evaluation.batches import Decoded, decode_batches
from tcl.evaluation.metrics import recall_at
from tcl.evaluation.reranking import (
    PackedTexts,
    VectorRanking,
    candidate_ranks,
    check_numbers,
    rank_by_vectors,
    score_pairs,
)
from tcl.models.tcl import TCL

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
        most k; of a query none of whose right candidates was re-ranked, it is that by vectors.
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


TOKEN_MEMORY = 2 << 30
"""Bytes of token states that are kept from encoding to re-ranking; what does not fit is encoded once more."""


class Progress(Protocol):
    """Told how many images and pairs were done since the last call, and how many there are in all, as known by now."""

    def __call__(self, done: int, /, *, total: int) -> None: ...


@dataclass
class RetrievalSet:
    """Distinct images and all their captions.

    Attributes:
        images: one reference per image.
        texts: every caption.
        image_of_text: the image that each caption describes.
    """

    images: list[str]
    texts: list[str]
    image_of_text: NDArray[np.int64]

    @classmethod
    def from_pairs(cls, index: PairIndex) -> RetrievalSet:
        """Rows that name the same image become one image with all their captions."""
        images: dict[str, int] = {}
        texts, image_of_text = [], []
        for pair in index:
            image = images.setdefault(pair.image, len(images))
            texts += pair.captions
            image_of_text += [image] * len(pair.captions)
        return cls(list(images), texts, np.array(image_of_text))

    def only(self, images: NDArray[np.int64]) -> RetrievalSet:
        """The set of some of its images (ascending rows) and their captions."""
        texts = np.flatnonzero(np.isin(self.image_of_text, images))
        return RetrievalSet(
            [self.images[row] for row in images],
            [self.texts[row] for row in texts],
            np.searchsorted(images, self.image_of_text[texts]),
        )


@dataclass
class RetrievalResult:
    """Metrics in percent by vectors and, when asked for, re-ranked; what could not be read; and who came first."""

    vectors: dict[str, float]
    reranked: dict[str, float] | None
    images: int
    texts: int
    bad: list[dict[str, str]]
    ranked: RankedSet = field(repr=False, compare=False)

    def figures(self) -> dict[str, float]:
        """The metrics in one: re-ranked where that was done, with those of the vectors under names of their own."""
        if self.reranked is None:
            return self.vectors
        return self.reranked | {f"vectors_{name}": value for name, value in self.vectors.items()}

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """What came first, a line per query; see `RankedSet.predictions`."""
        return list(self.ranked.predictions())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the rankings."""
        return {name: getattr(self, name) for name in ("vectors", "reranked", "images", "texts", "bad")}


@torch.inference_mode()
def evaluate_retrieval(
    model: TCL,
    index: PairIndex,
    *,
    rerank: int = 0,
    batch_size: int = 64,
    workers: int = 4,
    share: Share = ALONE,
    token_memory: int = TOKEN_MEMORY,
    progress: Progress = lambda done, *, total: None,
) -> RetrievalResult:
    """Recall of every caption's image and every image's captions.

    Images and texts are encoded in chunks. Of their token states, which are hundreds of times larger than the vectors,
    at most `token_memory` bytes are kept on the model's device until they are needed again; the others are computed
    again. So memory does not grow with the set.

    Args:
        model: in evaluation mode, with its processor.
        index: the pairs.
        rerank: candidates per query for the fusion encoder, clipped to the set; 0 leaves it out.
        batch_size: of both encoders.
        workers: decoding threads.
        share: what this process does of the images; the metrics are the same in all processes.
        token_memory: bytes.
        progress: see `Progress`.

    Raises:
        DataError: fewer than two images can be read, or the model's scores are not numbers.
    """
    everything = RetrievalSet.from_pairs(index)
    memory = token_memory // 2 if rerank else 0  # for images, and as much for texts
    images = _Images(model, everything.images, batch_size, workers, share)
    image_feat = images.encode(memory, progress)
    pairs = everything.only(images.readable)
    image_of_text = torch.from_numpy(pairs.image_of_text)
    with share.agree():
        # Every process encodes all texts: its images need the token states of nearly all of them.
        texts = _Texts(model, pairs.texts, batch_size, memory)
        own_ranking = None
        if share.rank == 0:
            own_ranking = rank_by_vectors(image_feat, texts.text_feat, image_of_text, max(rerank, LISTED))
    # One for all: rounding differs between devices, and with it which pairs are among the nearest.
    ranking: VectorRanking = share.collect(own_ranking)[0]
    ranked = RankedSet(pairs.images, pairs.texts, image_of_text, ranking, (ranking.i2t, ranking.t2i))
    if rerank:
        with share.agree():
            candidates = ranking.first(rerank)
            wanted = candidates.pairs()
            total = len(images.own) + int(images.wants(wanted, len(pairs.texts), share.rank).sum())
            own_scores = score_pairs(
                model,
                images.tokens(),
                texts.packed,
                wanted,
                len(pairs.texts),
                lambda done: progress(done, total=total),
            )
        scores = images.join_scores(wanted, own_scores, len(pairs.texts))
        ranked.candidate_scores = candidates.spread(wanted, scores)
        ranked.reranked = reranked_ranks(candidates, wanted, scores, image_of_text)
    bad = [{"image": everything.images[row], "reason": reason} for row, reason in sorted(images.bad.items())]
    reranked = None if ranked.reranked is None else _recalls(*ranked.reranked)
    return RetrievalResult(_recalls(*ranked.by_vectors), reranked, len(pairs.images), len(pairs.texts), bad, ranked)


def reranked_ranks(
    ranking: VectorRanking, pairs: Tensor, scores: Tensor, image_of_text: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks of images [I] and texts [T] once the candidates' pairs [P] have scores [P]."""
    check_numbers(scores)
    by_image, by_text = ranking.spread(pairs, scores)
    own = torch.arange(len(by_image))[:, None]
    return (
        candidate_ranks(by_image, image_of_text[ranking.of_image] == own, ranking.i2t),
        candidate_ranks(by_text, ranking.of_text == image_of_text[:, None], ranking.t2i),
    )


class _Images:
    """This process's share of the images: first for their features, then for their token states.

    Attributes:
        own: rows of this process, whole batches of them.
        readable: rows that could be read by any process; set by `encode`, as is `bad`, the reasons of the others.
    """

    def __init__(self, model: TCL, images: list[str], batch_size: int, workers: int, share: Share) -> None:
        self.model, self.images, self.share = model, images, share
        self.batch_size, self.workers = batch_size, workers
        self.own = share.rows(len(images), batch_size)
        self.readable = np.arange(len(images))
        self.bad: dict[int, str] = {}
        self._tokens: list[tuple[list[int], Tensor]] = []
        self._kept = 0  # of `own`, the first ones, whose token states are in `_tokens`

    def encode(self, memory: int, progress: Progress) -> Tensor:
        """Features [I, E] of all images that any process could read; keeps token states of at most `memory` bytes."""
        model, found = self.model, []
        with self.share.agree():
            for rows, batch in self._decoded(self.own):
                if batch.rows:
                    output = model.encode_image(batch.pixels)
                    found.append((rows, output.image_feat.cpu().numpy()))
                    memory -= output.image_embeds.nbytes
                    if memory >= 0:
                        self._tokens.append((rows, output.image_embeds))
                self._kept += len(batch) if memory >= 0 else 0
                progress(len(batch), total=len(self.own))
        features = np.zeros((len(self.images), model.vision_proj.out_features), np.float32)
        for of_one, bad in self.share.collect((found, self.bad)):
            self.bad |= bad
            for rows, of_batch in of_one:
                features[rows] = of_batch
        self.readable = np.setdiff1d(np.arange(len(self.images)), list(self.bad))
        if len(self.readable) < 2:
            raise _too_few(self.images, self.bad)
        return torch.from_numpy(features[self.readable]).to(model.device)

    def tokens(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows, among the readable images, and token states of this process's images, in the batches of `encode`."""
        yield from ((self._place(rows), embeds) for rows, embeds in self._tokens)
        again, known = self.own[self._kept :], set(self.bad)
        for rows, batch in self._decoded(again):
            lost = [error for place, error in batch.errors.items() if again[place] not in known]
            if lost:  # it could be read a moment ago
                raise lost[0]
            if rows:
                yield self._place(rows), self.model.encode_image(batch.pixels).image_embeds

    def wants(self, pairs: Tensor, texts: int, rank: int) -> Tensor:
        """Which of the pairs [P] are of the images of a process; bool [P]."""
        rows = [row for row in self.share.rows(len(self.images), self.batch_size, rank) if row not in self.bad]
        return torch.isin(pairs // texts, self._place(rows))

    def join_scores(self, pairs: Tensor, own: Tensor, texts: int) -> Tensor:
        """The scores [P] of all processes, of whom each has those of its images; `own` [P] are this one's."""
        mine = own[self.wants(pairs, texts, self.share.rank)].numpy()
        for rank, scores in enumerate(self.share.collect(mine)):
            own[self.wants(pairs, texts, rank)] = torch.from_numpy(scores)
        return own

    def _decoded(self, own: list[int]) -> Iterator[tuple[list[int], Decoded]]:
        """Batches of pixels with the rows of those that could be read."""
        images = [self.images[row] for row in own]
        for batch in decode_batches(self.model.processor, images, self.batch_size, self.workers):
            self.bad |= {own[place]: error.reason for place, error in batch.errors.items()}
            yield [own[place] for place in batch.rows], batch

    def _place(self, rows: list[int]) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.readable, rows))


class _Texts:
    """All texts of the set: their features, and token states where memory allows."""

    def __init__(self, model: TCL, texts: list[str], batch_size: int, memory: int) -> None:
        self._arguments = (model, *model.processor.texts(texts), batch_size)
        mask = self._arguments[2]
        self._fits = int(mask.sum()) * model.text_proj.in_features * 4 <= memory
        self._all = PackedTexts(*self._arguments, np.arange(len(texts)), keep=self._fits)
        self.text_feat = self._all.text_feat

    def packed(self, rows: Tensor) -> PackedTexts:
        """Token states of at least these texts (ascending)."""
        return self._all if self._fits else PackedTexts(*self._arguments, rows.numpy())


def _recalls(i2t: Tensor, t2i: Tensor) -> dict[str, float]:
    result = recall_at(i2t.numpy(), "i2t") | recall_at(t2i.numpy(), "t2i")
    return result | {"r_mean": float(np.mean(list(result.values())))}


def _too_few(images: list[str], bad: dict[int, str]) -> DataError:
    reason = f"; the first: {images[min(bad)]}: {bad[min(bad)]}" if bad else ""
    return DataError(
        f"retrieval needs at least two readable images, found {len(images) - len(bad)}{reason}",
        hint=IMAGES_HINT,
    )
