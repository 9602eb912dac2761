"""The loss of texts that are classified with one image or two: cross entropy, distilled from the teacher.

Letters: R texts, n images per text, S tokens, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.classifier import Classifier
from tcl.objective.losses import distilled_targets, soft_cross_entropy
from tcl.objective.momentum import MomentumTeacher


@dataclass
class ClassifierLosses:
    """The loss of a batch, and its share of right answers.

    Attributes:
        total: what is minimised, a scalar.
        accuracy: without gradient, 0 to 1.
    """

    total: Tensor
    accuracy: Tensor

    def named(self) -> dict[str, Tensor]:
        """Both, detached, for the log."""
        return {"loss": self.total.detach(), "accuracy": self.accuracy}


class ClassifierObjective(nn.Module):
    """Cross entropy with the classes, distilled from the teacher, which sees the same images.

    Without a teacher, and at alpha 0, nothing is distilled, and nothing spent on it.
    """

    def __init__(self, model: Classifier, teacher: MomentumTeacher | None = None) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        model.freeze_unused()

    def forward(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, alpha: float
    ) -> ClassifierLosses:
        """One batch.

        Args:
            images: uint8 or normalised [n R, 3, H, W]: the first image of every text, then the second.
            input_ids: int64 [R, S].
            attention_mask: bool [R, S].
            labels: int64 [R].
            alpha: weight of the teacher's targets, now.
        """
        logits = _logits(self.model, images, input_ids, attention_mask)
        targets = F.one_hot(labels, logits.shape[1]).to(torch.float32)
        if self.teacher is not None and alpha > 0:
            with torch.no_grad():
                logits_m = _logits(self.teacher.model, images, input_ids, attention_mask)  # type: ignore[arg-type]
            targets = distilled_targets(logits_m, targets, alpha)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return ClassifierLosses(soft_cross_entropy(logits, targets), accuracy)


def _logits(model: Classifier, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    key_values = model.image_key_values(model.encode_image(images).image_embeds)
    return model.classify(key_values, input_ids, attention_mask)
