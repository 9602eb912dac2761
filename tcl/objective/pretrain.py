"""The pre-training objective: the only place that brings model, teacher, queue, draws and losses together.

`forward` reads everything and changes nothing; the training step moves the teacher and the queue by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tcl.models.attention import Tokens
from tcl.models.rows import take_rows
from tcl.models.tcl import TCL, ImageOutput, TextOutput
from tcl.objective.losses import cma_loss, imc_loss, itm_loss, lmi_loss, mlm_loss
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.sampling import MaskedTokens, pool_patches, sample_negatives


@dataclass
class PretrainLosses:
    """The eight parts of the loss, each a scalar, by the paper's names."""

    cma_i2t: Tensor
    cma_t2i: Tensor
    imc_image: Tensor
    imc_text: Tensor
    lmi_image: Tensor
    lmi_text: Tensor
    itm: Tensor
    mlm: Tensor

    @property
    def contrastive(self) -> Tensor:
        """Mean of the six contrastive terms."""
        terms = (self.cma_i2t, self.cma_t2i, self.imc_image, self.imc_text, self.lmi_image, self.lmi_text)
        return torch.stack(terms).mean()

    @property
    def total(self) -> Tensor:
        """What is minimised: contrastive + ITM + MLM."""
        return self.contrastive + self.itm + self.mlm

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


class PretrainObjective(nn.Module):
    """Computes `PretrainLosses` of a batch (section 3 of the paper; `docs/method.md`)."""

    def __init__(self, model: TCL, teacher: MomentumTeacher, queue: FeatureQueue) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.queue = queue

    def forward(
        self,
        images: Tensor,
        images_aug: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        masked: MaskedTokens,
        alpha: float,
        generator: torch.Generator | None = None,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[PretrainLosses, Tensor, Tensor]:
        """One batch of B pairs.

        Args:
            images: first view, seen by the model; uint8 or normalised [B, 3, H, W].
            images_aug: second view, seen by the teacher [B, 3, H, W].
            input_ids: [B, S].
            attention_mask: bool [B, S].
            masked: the words to predict.
            alpha: weight of the teacher's targets, now.
            generator: for the hard negatives, on the model's device.
            negatives: fixes the draws: an image for each text [B], a text for each image [B].

        Returns:
            The losses, and the teacher's features [B, E] of images and texts for the queue.
        """
        size = len(input_ids)
        # Captions and their masked copies are one batch for the text encoder, here and in the teacher.
        rows, rows_mask = torch.cat([input_ids, masked.input_ids]), attention_mask.repeat(2, 1)
        image, text, masked_embeds = _encode(self.model, images, rows, rows_mask)
        with torch.no_grad():
            image_m, text_m, masked_embeds_m = _encode(self.teacher.model, images_aug, rows, rows_mask)

        # Contrast is computed in float32 whatever the autocast.
        with torch.autocast(images.device.type, enabled=False):
            sims = self.similarities(image, text, image_m, text_m)
            contrast = self._contrast(sims, image, text, image_m, text_m, alpha)

        if negatives is None and size > 1:
            image_of_text = sample_negatives(sims.t2i[:, :size], generator)
            negatives = image_of_text, sample_negatives(sims.i2t[:, :size], generator)
        predicted = Tokens(masked.positions, *input_ids.shape)
        itm_logits, fused_masked = self._fuse(image, text, masked_embeds, predicted, negatives)
        labels = torch.zeros(len(itm_logits), dtype=torch.long, device=itm_logits.device)
        labels[:size] = 1
        logits_m = self._mlm_targets(image_m, attention_mask, masked_embeds_m, predicted)
        logits = self.model.text_encoder.mlm_logits(fused_masked)
        losses = PretrainLosses(
            **contrast,
            itm=itm_loss(itm_logits, labels),
            mlm=mlm_loss(logits, logits_m, masked.labels, alpha),
        )
        return losses, image_m.image_feat, text_m.text_feat

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

    def local_features(self, image_m: ImageOutput, text_m: TextOutput) -> tuple[Tensor, Tensor]:
        """The teacher's local features: pooled patches [B, cells, E], and the words after [CLS] [B, S - 1, E]."""
        teacher = self.teacher.model
        patches = teacher.project_image(image_m.image_embeds[:, 1:])
        return pool_patches(patches, teacher.visual_encoder.grid_size), teacher.project_text(text_m.text_embeds[:, 1:])

    def _contrast(
        self,
        sims: Similarities,
        image: ImageOutput,
        text: TextOutput,
        image_m: ImageOutput,
        text_m: TextOutput,
        alpha: float,
    ) -> dict[str, Tensor]:
        positives = torch.eye(*sims.i2t.shape, device=sims.i2t.device)
        with torch.no_grad():
            image_local, text_local = self.local_features(image_m, text_m)
        temperature = self.model.temp
        return {
            "cma_i2t": cma_loss(sims.i2t, sims.i2t_m, positives, alpha),
            "cma_t2i": cma_loss(sims.t2i, sims.t2i_m, positives, alpha),
            "imc_image": imc_loss(sims.i2i, positives),
            "imc_text": imc_loss(sims.t2t, positives),
            "lmi_image": lmi_loss(image.image_feat, image_local, temperature),
            "lmi_text": lmi_loss(text.text_feat, text_local, temperature, text.attention_mask[:, 1:]),
        }

    def _fuse(
        self,
        image: ImageOutput,
        text: TextOutput,
        masked_embeds: Tensor,
        predicted: Tokens,
        negatives: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """ITM logits [3B, 2] (positives, texts with a negative image, images with a negative text) and the fused
        states of the masked words [M, D].

        Positives, negative texts and masked captions go with their own image and share its keys and values. The last
        layer computes [CLS] and the masked words alone. A batch of one has no negatives: its ITM row is the positive.
        """
        model, mask, size = self.model, text.attention_mask, len(text.text_embeds)
        images = model.image_key_values(image.image_embeds)
        own, own_mask = text.text_embeds, mask
        if negatives is not None:
            image_of_text, text_of_image = negatives
            own = torch.cat([own, take_rows(own, text_of_image)])
            own_mask = torch.cat([mask, mask[text_of_image]])
        first = Tokens.first(own_mask)
        captions, captions_mask = torch.cat([own, masked_embeds]), torch.cat([own_mask, mask])
        wanted = Tokens(
            torch.cat([first.positions, own_mask.numel() + predicted.positions]), len(captions), mask.shape[1]
        )
        fused = model.fuse(captions, captions_mask, images, Tokens.real(captions_mask), wanted)
        cls_states, masked_states = fused[: len(own)], fused[len(own) :]
        if negatives is None:
            return model.itm_head(cls_states), masked_states

        others = [image.select(image_of_text) for image in images]
        negative_image = model.fuse(text.text_embeds, mask, others, Tokens.real(mask), Tokens.first(mask))
        return model.itm_head(torch.cat([cls_states[:size], negative_image, cls_states[size:]])), masked_states

    @torch.no_grad()
    def _mlm_targets(
        self, image_m: ImageOutput, attention_mask: Tensor, masked_embeds: Tensor, predicted: Tokens
    ) -> Tensor:
        """The teacher's vocabulary logits [M, V] of the masked words, given the image."""
        teacher = self.teacher.model
        images = teacher.image_key_values(image_m.image_embeds)
        fused = teacher.fuse(masked_embeds, attention_mask, images, Tokens.real(attention_mask), predicted)
        return teacher.text_encoder.mlm_logits(fused)


def _against(features: Tensor, batch: Tensor, queue: Tensor) -> Tensor:
    """Similarities [B, B + Q] of features [B, E] to those of the batch [B, E], then of the queue [E, Q].

    The queue is not copied, so it must not move before the backward pass is done; autograd notices when it does.
    """
    return torch.cat([features @ batch.T, features @ queue], dim=1)


def _encode(model: TCL, images: Tensor, rows: Tensor, rows_mask: Tensor) -> tuple[ImageOutput, TextOutput, Tensor]:
    """Images [B, 3, H, W], captions, and the token states [B, S, D] of the masked captions.

    Args:
        model: student or teacher.
        images: one view.
        rows: token ids of the captions, then of the masked ones [2B, S].
        rows_mask: theirs [2B, S].
    """
    size = len(images)
    image = model.encode_image(images)
    # The MLM head gives the word embeddings a dense gradient, whatever is masked; one of them is enough.
    encoded = model.encode_text(rows, rows_mask, Tokens.real(rows_mask), sparse_gradient=True)
    text = TextOutput(encoded.text_embeds[:size], encoded.text_feat[:size], rows_mask[:size])
    return image, text, encoded.text_embeds[size:]
