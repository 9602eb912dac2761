"""The objective of pre-training: the only place that brings model, teacher, queue, draws and losses together.

`forward` reads everything and changes nothing; the training step moves the teacher and the queue by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tcl.models.attention import Tokens
from tcl.models.tcl import TCL, ImageOutput, TextOutput
from tcl.objective.contrast import PairLosses, PairObjective, match_pairs
from tcl.objective.losses import itm_loss, mlm_loss
from tcl.objective.sampling import MaskedTokens, sample_negatives


@dataclass
class PretrainLosses(PairLosses):
    """The eight parts of the loss, each a scalar, by the paper's names."""

    mlm: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised: contrastive + ITM + MLM."""
        return super().total + self.mlm


class PretrainObjective(PairObjective):
    """Computes `PretrainLosses` of a batch (section 3 of the paper; `docs/method.md`)."""

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

        positives = torch.eye(size, size + self.queue.image_queue.shape[1], device=images.device)
        contrast, sims = self.contrast(image, text, image_m, text_m, positives, alpha)
        if negatives is None and size > 1:
            image_of_text = sample_negatives(sims.t2i[:, :size], generator)
            negatives = image_of_text, sample_negatives(sims.i2t[:, :size], generator)
        predicted = Tokens(masked.positions, *input_ids.shape)
        itm_logits, fused_masked = match_pairs(self.model, image, text, negatives, (masked_embeds, predicted))
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

    @torch.no_grad()
    def _mlm_targets(
        self, image_m: ImageOutput, attention_mask: Tensor, masked_embeds: Tensor, predicted: Tokens
    ) -> Tensor:
        """The teacher's vocabulary logits [M, V] of the masked words, given the image."""
        teacher = self.teacher.model
        images = teacher.image_key_values(image_m.image_embeds)
        fused = teacher.fuse(masked_embeds, attention_mask, images, Tokens.real(attention_mask), predicted)
        return teacher.text_encoder.mlm_logits(fused)


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
