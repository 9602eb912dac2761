"""Image-text pairs as training samples: two views of the image, one of its captions.

Batches of `IdentifiedPairs` also say which pairs show the same image.

Shapes: B images of a batch, H x W pixels, S token ids of the longest caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tcl.data.images.augment import Transform
from tcl.data.loader import Batch
from tcl.data.pairs.table import PairIndex
from tcl.data.sources.find import SourceRows
from tcl.data.tokenizer import CaptionTokenizer


@dataclass
class PairBatch(Batch):
    """Two views of B images and one caption each.

    Args:
        images: first view, [B, 3, H, W], uint8.
        images_aug: second view, [B, 3, H, W], uint8.
        input_ids: [B, S], int64.
        attention_mask: [B, S], bool, True at tokens.
    """

    images: Tensor
    images_aug: Tensor
    input_ids: Tensor
    attention_mask: Tensor


class PairSample(NamedTuple):
    """One pair, before it is part of a batch: two views [3, H, W], uint8."""

    image: Tensor
    image_aug: Tensor
    caption: str


class PairSamples:
    """What pre-training loads of an index.

    Args:
        index: the pairs.
        tokenizer: turns captions into ids.
        transform: of both views, see `build_transform`.
        max_length: token ids kept per caption.
    """

    def __init__(self, index: PairIndex, tokenizer: CaptionTokenizer, transform: Transform, max_length: int) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.transform = transform
        self.max_length = max_length

    @property
    def parts(self) -> Sequence[SourceRows]:
        """The rows of each source, with its weight."""
        return self.index.parts

    def __len__(self) -> int:
        return len(self.index)

    def name(self, row: int) -> str:
        """The path or reference of the image."""
        return self.index[row].image

    def load(self, row: int) -> PairSample:
        """Decode an image, draw a caption and two views."""
        pair = self.index[row]
        caption = pair.captions[int(torch.randint(len(pair.captions), ()))]
        image, image_aug = self.transform.views(pair.image, 2)
        return PairSample(image, image_aug, caption)

    def collate(self, samples: list[PairSample], sample_ids: list[str], bad: list[dict[str, str]]) -> PairBatch:
        """Stack the views and pad the captions to the longest."""
        input_ids, attention_mask = self.tokenizer([sample.caption for sample in samples], self.max_length)
        return PairBatch(
            sample_ids=sample_ids,
            bad=bad,
            images=torch.stack([sample.image for sample in samples]),
            images_aug=torch.stack([sample.image_aug for sample in samples]),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask).bool(),
        )


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
