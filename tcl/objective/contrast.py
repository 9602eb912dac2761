"""What the objectives of pre-training and retrieval share: contrast with a batch and a queue, and matching of pairs.

Letters: B pairs, Q queued features, S tokens of a text, E feature width, D width, M masked words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tcl.models.attention import Tokens
from tcl.models.rows import take_rows
from tcl.models.tcl import TCL, ImageOutput, TextOutput
from tcl.objective.losses import cma_loss, imc_loss, lmi_loss
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.sampling import pool_patches


@dataclass
class PairLosses:
    """The parts of the loss that both objectives have, each a scalar, by the paper's names: contrast, and ITM."""

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
        terms = (self.cma_i2t, self.cma_t2i, self.imc_image, self.imc_text, self.lmi_image, self.lmi_text)
        return torch.stack(terms).mean()

    @property
    def total(self) -> Tensor:
        """What is minimised: contrastive + ITM."""
        return self.contrastive + self.itm

    def named(self) -> dict[str, Tensor]:
        """The total, the mean of the contrastive parts, and every part, detached, for the log."""
        values = {"loss": self.total, "contrastive": self.contrastive, **vars(self)}
        return {name: value.detach() for name, value in values.items()}


@dataclass
class Similarities:
    """Features against batch and queue, divided by the temperature; rows [B], columns the B of the batch, then Q."""

    i2t: Tensor
    t2i: Tensor
    i2i: Tensor
    t2t: Tensor
    i2t_m: Tensor  # `_m`: by the teacher
    t2i_m: Tensor


class PairObjective(nn.Module):
    """Brings model, teacher and queue together; a subclass says which pairs are positives.

    `forward` of a subclass reads everything and changes nothing; the training step moves teacher and queue by name.
    """

    def __init__(self, model: TCL, teacher: MomentumTeacher, queue: FeatureQueue) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.queue = queue

    def similarities(
        self, image: ImageOutput, text: TextOutput, image_m: ImageOutput, text_m: TextOutput
    ) -> Similarities:
        """Scaled similarities to the teacher's features of the batch, then of the queue as it was before this batch."""
        temperature = self.model.temp
        images, texts = (image_m.image_feat, self.queue.image_queue), (text_m.text_feat, self.queue.text_queue)
        return Similarities(
            i2t=_against(image.image_feat, *texts) / temperature,
            t2i=_against(text.text_feat, *images) / temperature,
            i2i=_against(image.image_feat, *images) / temperature,
            t2t=_against(text.text_feat, *texts) / temperature,
            i2t_m=_against(image_m.image_feat, *texts) / temperature.detach(),
            t2i_m=_against(text_m.text_feat, *images) / temperature.detach(),
        )

    @staticmethod
    def pool(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Patches [B, rows * columns, E] to the local features of images [B, cells, E]."""
        return pool_patches(patches, grid_size)

    def local_features(self, image_m: ImageOutput, text_m: TextOutput) -> tuple[Tensor, Tensor]:
        """The teacher's local features: pooled patches [B, cells, E], and the words after [CLS] [B, S - 1, E]."""
        teacher = self.teacher.model
        patches = teacher.project_image(image_m.image_embeds[:, 1:])
        return self.pool(patches, teacher.visual_encoder.grid_size), teacher.project_text(text_m.text_embeds[:, 1:])

    def contrast(
        self,
        image: ImageOutput,
        text: TextOutput,
        image_m: ImageOutput,
        text_m: TextOutput,
        positives: Tensor,
        alpha: float,
    ) -> tuple[dict[str, Tensor], Similarities]:
        """The six contrastive losses by name, and the similarities; in float32 whatever the autocast.

        Args:
            image: B images.
            text: their texts.
            image_m: the images as the teacher sees them.
            text_m: the same of the texts.
            positives: hard targets over batch and queue, rows sum to 1 [B, B + Q].
            alpha: weight of the teacher's targets.
        """
        temperature = self.model.temp
        with torch.autocast(temperature.device.type, enabled=False):
            sims = self.similarities(image, text, image_m, text_m)
            with torch.no_grad():
                image_local, text_local = self.local_features(image_m, text_m)
            losses = {
                "cma_i2t": cma_loss(sims.i2t, sims.i2t_m, positives, alpha),
                "cma_t2i": cma_loss(sims.t2i, sims.t2i_m, positives, alpha),
                "imc_image": imc_loss(sims.i2i, positives),
                "imc_text": imc_loss(sims.t2t, positives),
                # As published, LMI takes a second pair of the same image for a negative.
                "lmi_image": lmi_loss(image.image_feat, image_local, temperature),
                "lmi_text": lmi_loss(text.text_feat, text_local, temperature, text.attention_mask[:, 1:]),
            }
        return losses, sims


def _against(features: Tensor, batch: Tensor, queue: Tensor) -> Tensor:
    """Similarities [B, B + Q] of features [B, E] to those of the batch [B, E], then of the queue [E, Q].

    The queue is not copied, so it must not move before the backward pass is done; autograd notices when it does.
    """
    return torch.cat([features @ batch.T, features @ queue], dim=1)


def match_pairs(
    model: TCL,
    image: ImageOutput,
    text: TextOutput,
    negatives: tuple[Tensor, Tensor] | None,
    masked: tuple[Tensor, Tokens] | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs, and their negatives, through the fusion encoder.

    Positives, negative texts and masked captions go with their own image and share its keys and values. The last
    layer computes [CLS] and the masked words alone.

    Args:
        model: the model.
        image: B images.
        text: their texts.
        negatives: an image for each text [B], a text for each image [B]; a batch of one has none.
        masked: states of the captions with masked words [B, S, D], and these words.

    Returns:
        ITM logits [3B, 2] of positives, texts with a negative image, images with a negative text, or [B, 2] of the
        positives alone; and fused states of the masked words [M, D].
    """
    mask, size = text.attention_mask, len(text.text_embeds)
    images = model.image_key_values(image.image_embeds)
    own, own_mask = text.text_embeds, mask
    if negatives is not None:
        image_of_text, text_of_image = negatives
        own = torch.cat([own, take_rows(own, text_of_image)])
        own_mask = torch.cat([mask, mask[text_of_image]])
    captions, captions_mask, wanted = own, own_mask, Tokens.first(own_mask)
    if masked is not None:
        captions, captions_mask = torch.cat([own, masked[0]]), torch.cat([own_mask, mask])
        positions = torch.cat([wanted.positions, own_mask.numel() + masked[1].positions])
        wanted = Tokens(positions, *captions_mask.shape)
    fused = model.fuse(captions, captions_mask, images, Tokens.real(captions_mask), wanted)
    cls_states, masked_states = fused[: len(own)], fused[len(own) :]
    if negatives is not None:
        others = [layer.select(image_of_text) for layer in images]
        # Not `Tokens.first` itself: with one query per text, a seed would draw another dropout than it always did.
        first = Tokens(Tokens.first(mask).positions, *mask.shape)
        negative_image = model.fuse(text.text_embeds, mask, others, Tokens.real(mask), first)
        cls_states = torch.cat([cls_states[:size], negative_image, cls_states[size:]])
    return model.itm_head(cls_states), masked_states
