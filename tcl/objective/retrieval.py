"""The objective of retrieval fine-tuning: pre-training's without MLM, aware of which samples show the same image."""

from __future__ import annotations

import torch
from torch import Tensor

from tcl.models.tcl import TCL
from tcl.objective.contrast import PairLosses, PairObjective, match_pairs
from tcl.objective.losses import itm_loss
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.sampling import draw_by_weight, pool_patches

NO_IMAGE = -100
"""Id of queue entries that belong to no image yet."""

CELLS = 4
"""LMI pools the patches to as many cells per side, whatever the image size."""

IGNORED = -100


class RetrievalLosses(PairLosses):
    """The seven parts of the loss, each a scalar, by the paper's names."""


class ImageIdQueue(FeatureQueue):
    """A feature queue that remembers which image each column belongs to."""

    idx_queue: Tensor  # [1, Q], the published shape

    def __init__(self, embed_dim: int, queue_size: int) -> None:
        super().__init__(embed_dim, queue_size)
        self.register_buffer("idx_queue", torch.full((1, queue_size), NO_IMAGE))

    def enqueue_images(self, image_feat: Tensor, text_feat: Tensor, image_ids: Tensor) -> None:
        """`enqueue` with the ids [B] of the images."""
        newest, columns = self.places(len(image_ids))
        self.idx_queue[0, columns] = image_ids[newest]
        self.enqueue(image_feat, text_feat)


def pool_to_cells(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """`pool_patches` to `CELLS` x `CELLS` cells."""
    return pool_patches(patches, grid_size, (CELLS, CELLS))


class RetrievalObjective(PairObjective):
    """Computes `RetrievalLosses` of a batch."""

    queue: ImageIdQueue
    pool = staticmethod(pool_to_cells)  # of the teacher's patches, for LMI

    def __init__(self, model: TCL, teacher: MomentumTeacher, queue: ImageIdQueue) -> None:
        super().__init__(model, teacher, queue)

    def forward(
        self,
        images: Tensor,
        images_aug: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_ids: Tensor,
        alpha: float,
        generator: torch.Generator | None = None,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[RetrievalLosses, Tensor, Tensor]:
        """One batch of B pairs.

        Args:
            images: first view, seen by the model; uint8 or normalised [B, 3, H, W].
            images_aug: second view, seen by the teacher [B, 3, H, W].
            input_ids: [B, S].
            attention_mask: bool [B, S].
            image_ids: equal where two pairs show the same image; such pairs are positives, never hard negatives [B].
            alpha: weight of the teacher's targets, now; 0 is fine-tuning without distillation.
            generator: for the hard negatives, on the model's device.
            negatives: fixes the draws: an image for each text [B], a text for each image [B].

        Returns:
            The losses, and the teacher's features [B, E] of images and texts for the queue.
        """
        model, size = self.model, len(input_ids)
        image, text = model.encode_image(images), model.encode_text(input_ids, attention_mask)
        with torch.no_grad():
            image_m = self.teacher.model.encode_image(images_aug)
            text_m = self.teacher.model.encode_text(input_ids, attention_mask)
        same = image_ids[:, None] == image_ids
        contrast, sims = self.contrast(image, text, image_m, text_m, self.positives(image_ids), alpha)
        if negatives is None:
            image_of_text = sample_other_images(sims.t2i[:, :size], same, generator)
            negatives = image_of_text, sample_other_images(sims.i2t[:, :size], same, generator)
        itm_logits, _ = match_pairs(model, image, text, negatives)
        losses = RetrievalLosses(**contrast, itm=itm_loss(itm_logits, itm_labels(same)))
        return losses, image_m.image_feat, text_m.text_feat

    def positives(self, image_ids: Tensor) -> Tensor:
        """Hard targets over batch and queue [B, B + Q]: every entry of the same image, in equal parts."""
        same = image_ids[:, None] == torch.cat([image_ids, self.queue.idx_queue[0]])
        return same / same.sum(dim=1, keepdim=True)


def itm_labels(same: Tensor) -> Tensor:
    """Labels [3B] of what `match_pairs` gives: 1, 0, 0; rows of a sample without any other image do not count.

    Args:
        same: bool, which pairs of the batch show the same image [B, B].
    """
    negative = torch.where(same.all(dim=1), IGNORED, 0)
    return torch.cat([torch.ones_like(negative), negative, negative])


def other_image_weights(sim: Tensor, same: Tensor) -> Tensor:
    """How likely each other sample is to be drawn as hard negative: softmax of the similarities over other images.

    Args:
        sim: in-batch similarities, divided by the temperature [B, B].
        same: bool, which pairs show the same image [B, B].

    Returns:
        [B, B]; rows sum to 1. Equal weights in the rows that have no other image.
    """
    return sim.masked_fill(same, torch.finfo(sim.dtype).min).softmax(dim=-1)


def sample_other_images(sim: Tensor, same: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One hard negative for each row, by `other_image_weights`: indices [B]."""
    return draw_by_weight(other_image_weights(sim, same), generator)[:, 0]
