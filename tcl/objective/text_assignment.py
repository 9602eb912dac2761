"""Text assignment, the step before NLVR2: it teaches the doubled fusion layers to tell two images apart.

Letters: B pairs of a batch, S tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.classifier import TextAssigner
from tcl.objective.classification import ClassifierLosses
from tcl.objective.sampling import draw_by_weight, negative_weights

TEMPERATURE = 0.07  # of the similarities that negatives are drawn by; fixed, unlike the learned one of pre-training
FIRST, SECOND, NEITHER = range(3)


class Assignment(NamedTuple):
    """Two images for each text, and which of them is its own."""

    image_of_text: Tensor  # int64 [B, 2]
    labels: Tensor  # FIRST, SECOND or NEITHER, int64 [B]


def assignment_weights(image_feat: Tensor) -> Tensor:
    """How likely each other image is drawn as negative of an image: [B, B], from features [B, E]."""
    return negative_weights(image_feat @ image_feat.T / TEMPERATURE)


def assign(negatives: Tensor, one_negative: Tensor, own_first: Tensor) -> Assignment:
    """Put the images into their places.

    Args:
        negatives: two other images for each text, int64 [B, 2].
        one_negative: the own image and one negative, rather than two negatives; bool [B].
        own_first: with one negative, the own image comes first; bool [B].
    """
    own = torch.arange(len(negatives), device=negatives.device)
    first = torch.where(one_negative & own_first, own, negatives[:, 0])
    second = torch.where(one_negative, torch.where(own_first, negatives[:, 0], own), negatives[:, 1])
    labels = torch.where(one_negative, torch.where(own_first, FIRST, SECOND), NEITHER)
    return Assignment(torch.stack([first, second], dim=1), labels)


def draw_assignment(image_feat: Tensor, generator: torch.Generator | None = None) -> Assignment:
    """Draw as published: two texts in three keep their image beside one hard negative, the third gets two negatives.

    A batch of two has a single negative for each, so all keep their image.

    Args:
        image_feat: L2-normalised [B, E]; B >= 2.
        generator: on its device.
    """
    size, device = len(image_feat), image_feat.device
    negatives = draw_by_weight(assignment_weights(image_feat), generator, count=2)
    draws = torch.rand(2, size, generator=generator, device=device)
    return assign(negatives, (draws[0] > 1 / 3) | (size == 2), draws[1] > 0.5)


class TextAssignmentObjective(nn.Module):
    """Cross entropy of "which of the two images does this text describe". No teacher, as published."""

    def __init__(self, model: TextAssigner) -> None:
        super().__init__()
        self.model = model
        model.freeze_unused()

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        generator: torch.Generator | None = None,
        assignment: Assignment | None = None,
    ) -> ClassifierLosses:
        """One batch of B pairs; one alone has no negative and adds nothing.

        Args:
            images: uint8 or normalised [B, 3, H, W].
            input_ids: int64 [B, S].
            attention_mask: bool [B, S].
            generator: for the draws, on the model's device.
            assignment: fixes them.
        """
        image = self.model.encode_image(images)
        alone = len(images) == 1
        if alone:
            nothing = torch.zeros(1, dtype=torch.long, device=images.device)
            assignment = Assignment(nothing.expand(1, 2), nothing)
        elif assignment is None:
            with torch.autocast(images.device.type, enabled=False):
                assignment = draw_assignment(image.image_feat, generator)
        images_kv = self.model.image_key_values(image.image_embeds)
        logits = self.model.assign(images_kv, input_ids, attention_mask, assignment.image_of_text).float()
        accuracy = (logits.argmax(dim=1) == assignment.labels).float().mean()
        loss = F.cross_entropy(logits, assignment.labels)
        return ClassifierLosses(loss * 0.0 if alone else loss, accuracy)
