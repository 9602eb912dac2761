"""The objective of retrieval fine-tuning: pre-training's without MLM, aware of which samples show the same image."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl.models.rows import take_rows
from tcl.models.tcl import TCL, ImageOutput, TextOutput
from tcl.objective.losses import cma_loss, imc_loss, itm_loss, lmi_loss
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.pretrain import PretrainObjective, Similarities
from tcl.objective.sampling import draw_by_weight

NO_IMAGE = -100
"""Id of queue entries that belong to no image yet."""

CELLS = 4
"""LMI pools the patches to as many cells per side, whatever the image size."""

IGNORED = -100


@dataclass
class RetrievalLosses:
    """The seven parts of the loss, each a scalar, by the paper's names."""

    cma_i2t: Tensor
    cma_t2i: Tensor
    imc_image: Tensor
    imc_text: Tensor
    lmi_image: Tensor
    lmi_text: Tensor
    itm: Tensor

    @property
    def contrastive(self) -> Tensor:
        """Mean of the six contrastive terms."""
        return torch.stack([getattr(self, field.name) for field in fields(self)[:6]]).mean()

    @property
    def total(self) -> Tensor:
        """What is minimised: contrastive + ITM."""
        return self.contrastive + self.itm

    def named(self) -> dict[str, Tensor]:
        """The total, the mean of the contrastive parts, and every part, detached, for the log."""
        values = {"loss": self.total, "contrastive": self.contrastive, **vars(self)}
        return {name: value.detach() for name, value in values.items()}


class ImageIdQueue(FeatureQueue):
    """A feature queue that remembers which image each column belongs to."""

    idx_queue: Tensor  # [1, Q], the published shape

    def __init__(self, embed_dim: int, queue_size: int) -> None:
        super().__init__(embed_dim, queue_size)
        self.register_buffer("idx_queue", torch.full((1, queue_size), NO_IMAGE))

    def enqueue_images(self, image_feat: Tensor, text_feat: Tensor, image_ids: Tensor) -> None:
        """`enqueue` with the ids [B] of the images."""
        size = self.idx_queue.shape[1]
        skipped = max(len(image_ids) - size, 0)
        columns = (self.queue_ptr + torch.arange(skipped, len(image_ids), device=self.queue_ptr.device)) % size
        self.idx_queue[0, columns] = image_ids[skipped:]
        self.enqueue(image_feat, text_feat)


class RetrievalObjective(PretrainObjective):
    """Computes `RetrievalLosses` of a batch."""

    queue: ImageIdQueue

    def __init__(self, model: TCL, teacher: MomentumTeacher, queue: ImageIdQueue) -> None:
        super().__init__(model, teacher, queue)

    def forward(  # type: ignore[override]
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
        with torch.autocast(images.device.type, enabled=False):  # contrast in float32, as in pre-training
            sims = self.similarities(image, text, image_m, text_m)
            contrast = self._contrast_images(sims, image, text, image_m, text_m, self.positives(image_ids), alpha)
        if negatives is None:
            image_of_text = sample_other_images(sims.t2i[:, :size], same, generator)
            negatives = image_of_text, sample_other_images(sims.i2t[:, :size], same, generator)
        itm = itm_loss(itm_logits(model, image, text, negatives), itm_labels(same))
        return RetrievalLosses(**contrast, itm=itm), image_m.image_feat, text_m.text_feat

    def positives(self, image_ids: Tensor) -> Tensor:
        """Hard targets over batch and queue [B, B + Q]: every entry of the same image, in equal parts."""
        same = image_ids[:, None] == torch.cat([image_ids, self.queue.idx_queue[0]])
        return same / same.sum(dim=1, keepdim=True)

    def local_features(self, image_m: ImageOutput, text_m: TextOutput) -> tuple[Tensor, Tensor]:
        """The teacher's local features: pooled patches [B, cells, E], and the words after [CLS] [B, S - 1, E]."""
        teacher = self.teacher.model
        patches = teacher.project_image(image_m.image_embeds[:, 1:])
        pooled = pool_to_cells(patches, teacher.visual_encoder.grid_size)
        return pooled, teacher.project_text(text_m.text_embeds[:, 1:])

    def _contrast_images(
        self,
        sims: Similarities,
        image: ImageOutput,
        text: TextOutput,
        image_m: ImageOutput,
        text_m: TextOutput,
        positives: Tensor,
        alpha: float,
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            image_local, text_local = self.local_features(image_m, text_m)
        temperature = self.model.temp
        return {
            "cma_i2t": cma_loss(sims.i2t, sims.i2t_m, positives, alpha),
            "cma_t2i": cma_loss(sims.t2i, sims.t2i_m, positives, alpha),
            "imc_image": imc_loss(sims.i2i, positives),
            "imc_text": imc_loss(sims.t2t, positives),
            # As published, LMI takes a second pair of the same image for a negative.
            "lmi_image": lmi_loss(image.image_feat, image_local, temperature),
            "lmi_text": lmi_loss(text.text_feat, text_local, temperature, text.attention_mask[:, 1:]),
        }


def itm_logits(model: TCL, image: ImageOutput, text: TextOutput, negatives: tuple[Tensor, Tensor]) -> Tensor:
    """ITM logits [3B, 2]: positives, texts with a negative image, images with a negative text."""
    image_of_text, text_of_image = negatives
    images, mask = model.image_key_values(image.image_embeds), text.attention_mask
    own = torch.cat([text.text_embeds, take_rows(text.text_embeds, text_of_image)])
    positive, negative_text = model.fuse(own, torch.cat([mask, mask[text_of_image]]), images).chunk(2)
    negative_image = model.fuse(text.text_embeds, mask, [image.select(image_of_text) for image in images])
    return model.itm_head(torch.cat([positive[:, 0], negative_image[:, 0], negative_text[:, 0]]))


def itm_labels(same: Tensor) -> Tensor:
    """Labels [3B] of `itm_logits`: 1, 0, 0; rows of a sample without any other image in the batch do not count.

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


def pool_to_cells(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Average neighbouring patches into `CELLS` x `CELLS` cells; patches left over at the far edge belong to none.

    Args:
        patches: [B, rows * columns, E].

    Returns:
        [B, cells, E], not normalised again; fewer cells where a side has fewer patches.
    """
    window = [max(side // CELLS, 1) for side in grid_size]
    grid = patches.transpose(1, 2).unflatten(2, grid_size)
    pooled = F.avg_pool2d(grid, window)[:, :, :CELLS, :CELLS]
    return pooled.flatten(2).transpose(1, 2)
