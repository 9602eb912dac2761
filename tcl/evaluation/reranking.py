"""Re-ranking at the scale of a test set: which pairs to look at, and their ITM scores, in chunks of the set.

Letters: I images, T texts, K candidates of a query, P distinct pairs, E feature width, N image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl.errors import DataError
from tcl.evaluation.metrics import NAN_HINT
from tcl.models.attention import KeyValue, Tokens
from tcl.models.tcl import TCL

BLOCK = 256
"""Images whose similarities to all texts are in memory at once."""

PAIRS = 16
"""Captions of one image that pass through the fusion encoder at once on a CPU; a GPU takes more."""

PAIRS_ON_DEVICE = 512

TEXTS = 2048
"""Texts whose token states a chunk of images has in memory at once: there are images that every text finds near."""


@dataclass
class VectorRanking:
    """What the vectors say.

    Attributes:
        i2t: for each image, how many texts of other images are ahead of the best own one [I].
        t2i: for each text, how many other images are ahead of its own [T].
        of_image: the nearest texts of each image [I, K].
        of_text: the nearest images of each text [T, K].
        image_scores: the cosines of `of_image` [I, K], descending.
        text_scores: those of `of_text` [T, K].
    """

    i2t: Tensor
    t2i: Tensor
    of_image: Tensor
    of_text: Tensor
    image_scores: Tensor
    text_scores: Tensor

    def first(self, count: int) -> VectorRanking:
        """The same with the nearest `count` alone."""
        of_image, of_text = self.of_image[:, :count], self.of_text[:, :count]
        return replace(
            self,
            of_image=of_image,
            of_text=of_text,
            image_scores=self.image_scores[:, :count],
            text_scores=self.text_scores[:, :count],
        )

    def pairs(self) -> Tensor:
        """Every (image, text) that a query of either side wants, once, by image: `image * T + text`, ascending [P]."""
        wanted = torch.cat([self._keys_of_image().flatten(), self._keys_of_text().flatten()])
        return wanted.unique()

    def _keys_of_image(self) -> Tensor:
        return torch.arange(len(self.of_image))[:, None] * len(self.of_text) + self.of_image

    def _keys_of_text(self) -> Tensor:
        return self.of_text * len(self.of_text) + torch.arange(len(self.of_text))[:, None]

    def spread(self, pairs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of `pairs` [P] laid out as the candidates are: [I, K] and [T, K]."""
        return (
            scores[torch.searchsorted(pairs, self._keys_of_image())],
            scores[torch.searchsorted(pairs, self._keys_of_text())],
        )


def rank_by_vectors(image_feat: Tensor, text_feat: Tensor, image_of_text: Tensor, top_k: int) -> VectorRanking:
    """Ranks and candidates by cosine; of the similarities, only `BLOCK` rows exist at a time.

    Args:
        image_feat: [I, E].
        text_feat: [T, E], on the same device.
        image_of_text: the image that each text describes [T].
        top_k: candidates per query, clipped to the set; 0 gives none.

    Raises:
        DataError: a similarity is not a number.
    """
    device, texts = image_feat.device, len(text_feat)
    image_of_text = image_of_text.to(device)
    i2t, of_image, image_scores, own = [], [], [], torch.full((texts,), -torch.inf, device=device)
    best = torch.empty(texts, 0, device=device)
    of_text = torch.empty(texts, 0, dtype=torch.long, device=device)
    for start, sims in _similarities(image_feat, text_feat):
        rows = torch.arange(start, start + len(sims), device=device)
        positive = image_of_text == rows[:, None]
        right = sims.masked_fill(~positive, -torch.inf)
        highest = right.amax(dim=1, keepdim=True)
        own = own.maximum(right.amax(dim=0))
        i2t.append(((sims >= highest) & ~positive).sum(dim=1))
        nearest = sims.topk(min(top_k, texts))
        of_image.append(nearest.indices)
        image_scores.append(nearest.values)
        # The best images of each text so far, and these: the best of all are among them.
        best = torch.cat([best, sims.T], dim=1)
        of_text = torch.cat([of_text, rows.expand(texts, -1)], dim=1)
        best, kept = best.topk(min(top_k, best.shape[1]))
        of_text = of_text.gather(1, kept)
    t2i = torch.full((texts,), -1, device=device)  # the own image is not ahead of itself
    for _, sims in _similarities(image_feat, text_feat):
        t2i += (sims >= own).sum(dim=0)
    everything = (torch.cat(i2t), t2i, torch.cat(of_image), of_text, torch.cat(image_scores), best)
    return VectorRanking(*(of_all.cpu() for of_all in everything))


def _similarities(image_feat: Tensor, text_feat: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(image_feat), BLOCK):
        with torch.autocast(image_feat.device.type, enabled=False):
            sims = image_feat[start : start + BLOCK] @ text_feat.T
        check_numbers(sims)
        yield start, sims


def check_numbers(scores: Tensor) -> None:
    """Refuse to rank what is not a number.

    Raises:
        DataError: a score is NaN.
    """
    if scores.isnan().any():
        raise DataError("similarities are not numbers: the model's weights or inputs are not finite", hint=NAN_HINT)


def candidate_ranks(scores: Tensor, positive: Tensor, by_vectors: Tensor) -> Tensor:
    """Ranks after re-ranking, from 0: re-ranked candidates first, and behind them the others as by their vectors.

    A negative with the same score counts as ahead. The published code scores all others -100, so that they are misses
    at any depth; that is the same for recall up to K.

    Args:
        scores: of the candidates of each query [Q, K].
        positive: bool, which of them are right [Q, K].
        by_vectors: ranks before re-ranking [Q], where no candidate is right.
    """
    best = scores.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ((scores >= best) & ~positive).sum(dim=1)
    return torch.where(positive.any(dim=1), ahead, by_vectors)


class PackedTexts:
    """Token states of texts as the fusion encoder needs them for every image, without any padding, in one tensor.

    The first fusion layer's self-attention has not seen an image yet, so it is computed here, once per text.

    Args:
        model: in evaluation mode.
        input_ids: of all texts of the set [T, S].
        attention_mask: [T, S].
        batch_size: texts at once.
        rows: which of them to encode; ascending.
        keep: keep the token states; the features are always kept.
    """

    def __init__(
        self,
        model: TCL,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        batch_size: int,
        rows: NDArray[np.int64],
        keep: bool = True,
    ) -> None:
        lengths = attention_mask[rows].sum(axis=1)
        self.lengths = torch.from_numpy(lengths)
        self._rows = torch.from_numpy(rows)
        self._starts = self.lengths.cumsum(0) - self.lengths
        states: dict[int, Tensor] = {}
        features: list[Tensor] = []
        order = np.argsort(lengths, kind="stable")  # texts of a length together: hardly any padding is computed
        for start in range(0, len(rows), batch_size):
            places = order[start : start + batch_size]
            longest = int(lengths[places].max())
            chunk = rows[places]
            output = model.encode_text(input_ids[chunk, :longest], attention_mask[chunk, :longest])
            features.append(output.text_feat)
            if keep:
                first = model.text_encoder.bert.fusion_layers()[0]
                attended = first.attention(output.text_embeds, output.attention_mask[:, None, None, :])  # type: ignore[operator]
                packed = attended.flatten(0, 1)[output.attention_mask.flatten()]
                states |= zip(places, packed.split(lengths[places].tolist()), strict=True)
        self.text_feat = torch.cat(features)[torch.from_numpy(np.argsort(order))]
        self._states = torch.cat([states[place] for place in range(len(rows))]) if keep else None

    def places(self, rows: Tensor) -> Tensor:
        """Where the texts `rows` of the set are in here."""
        return torch.searchsorted(self._rows, rows)

    def padded(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """States [R, S, D] and mask [R, S] of some texts, as long as the longest of them."""
        assert self._states is not None
        lengths = self.lengths[places]
        steps = torch.arange(int(lengths.max()))
        # Positions behind the end hold other texts' states, which the mask keeps out.
        positions = (self._starts[places][:, None] + steps).clamp(max=len(self._states) - 1)
        device = self._states.device
        return self._states[positions.to(device)], (steps < lengths[:, None]).to(device)


def score_pairs(
    model: TCL,
    image_embeds: Iterable[tuple[Tensor, Tensor]],
    texts: Callable[[Tensor], PackedTexts],
    pairs: Tensor,
    total_texts: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Match logits of pairs, image by image: its keys and values are computed once for all its captions.

    Args:
        model: in evaluation mode.
        image_embeds: chunks of images: their rows [C] and token states [C, 1 + N, Dv]. Pairs of an image that no chunk
            holds stay at 0, so that the scores of several processes add up.
        texts: gives the token states of at least the texts (rows of the set) that it is asked for.
        pairs: from `VectorRanking.pairs` [P].
        total_texts: T.
        progress: told how many pairs were scored since the last call.

    Returns:
        [P], on the CPU.
    """
    at_once = PAIRS if model.device.type == "cpu" else PAIRS_ON_DEVICE
    scores = torch.zeros(len(pairs))
    for rows, embeds in image_embeds:
        starts, stops = (torch.searchsorted(pairs, row * total_texts).tolist() for row in (rows, rows + 1))
        wanted = [pairs[start:stop] % total_texts for start, stop in zip(starts, stops, strict=True)]
        for chunk in torch.cat(wanted).unique().split(TEXTS):
            packed = texts(chunk)
            for start, own, embed in zip(starts, wanted, embeds, strict=True):
                first, last = (int(torch.searchsorted(own, edge)) for edge in (chunk[0], chunk[-1] + 1))
                if first < last:
                    scores[start + first : start + last] = _score(model, embed, packed, own[first:last], at_once)
                    progress(last - first)
            del packed  # before the next ones are made
    return scores


def _score(model: TCL, image_embeds: Tensor, packed: PackedTexts, rows: Tensor, at_once: int) -> Tensor:
    """Match logits [R] of one image [1 + N, Dv] with the texts `rows`, those of a length together."""
    places = packed.places(rows)
    order = packed.lengths[places].argsort()
    image = model.image_key_values(image_embeds[None])
    logits = [match_logits(model, *packed.padded(chunk), image) for chunk in places[order].split(at_once)]
    return torch.cat(logits).cpu()[order.argsort()]


def match_logits(model: TCL, states: Tensor, mask: Tensor, images: Sequence[KeyValue]) -> Tensor:
    """The verdict of the fusion encoder, whose last layer computes [CLS] alone.

    Args:
        states: of `PackedTexts`, behind the first fusion layer's self-attention [R, S, D].
        mask: bool [R, S].
        images: keys and values of B images for each fusion layer; R is a multiple of B, row r goes with image r % B.

    Returns:
        logits of "match" [R].
    """
    fused = model.text_encoder.bert.fuse(states, mask, images, wanted=Tokens.first(mask), attended=True)
    return model.itm_head(fused)[:, 1]
