"""Pairs whose batches say which of them show the same image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tcl.data.images.augment import Transform
from tcl.data.pairs.samples import PairBatch, PairSample, PairSamples
from tcl.data.pairs.table import PairIndex
from tcl.data.tokenizer import CaptionTokenizer


@dataclass
class IdentifiedBatch(PairBatch):
    """Two views of B images and one caption each, with the ids of the images: [B], int64."""

    image_ids: Tensor


class IdentifiedSample(NamedTuple):
    """One pair with the id of its image."""

    pair: PairSample
    image_id: int


class IdentifiedPairs(PairSamples):
    """What the training of retrieval loads of an index; arguments as `PairSamples`.

    An image's id is its number in the order in which the images first come, so it is the same in every process.
    """

    def __init__(self, index: PairIndex, tokenizer: CaptionTokenizer, transform: Transform, max_length: int) -> None:
        super().__init__(index, tokenizer, transform, max_length)
        numbered = index.table["image_id"].combine_chunks().dictionary_encode()
        self.image_ids = torch.from_numpy(numbered.indices.to_numpy(zero_copy_only=False).astype("int64"))

    def load(self, row: int) -> IdentifiedSample:  # type: ignore[override]
        """Decode an image, draw a caption and two views."""
        return IdentifiedSample(super().load(row), int(self.image_ids[row]))

    def collate(  # type: ignore[override]
        self, samples: list[IdentifiedSample], sample_ids: list[str], bad: list[dict[str, str]]
    ) -> IdentifiedBatch:
        """Stack the views and pad the captions to the longest."""
        pairs = super().collate([sample.pair for sample in samples], sample_ids, bad)
        return IdentifiedBatch(**vars(pairs), image_ids=torch.tensor([sample.image_id for sample in samples]))
