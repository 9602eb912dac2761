"""The loss of visual question answering: how likely the decoder finds people's answers.

Letters: B questions, each with its image, S tokens of a question, A answers, T tokens of an answer, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tcl.models.vqa import VqaModel


@dataclass
class VqaLosses:
    """The loss of a batch: a scalar."""

    total: Tensor

    def named(self) -> dict[str, Tensor]:
        """The loss, detached, for the log."""
        return {"loss": self.total.detach()}


class VqaObjective(nn.Module):
    """Negative log-likelihood of the answers, weighted, per image.

    There is no teacher: the published code computes one, but its distillation has no effect on the loss.
    """

    def __init__(self, model: VqaModel) -> None:
        super().__init__()
        self.model = model
        model.freeze_unused()

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_ids: Tensor,
        answer_mask: Tensor,
        question_of_answer: Tensor,
        weights: Tensor,
    ) -> VqaLosses:
        """One batch.

        Args:
            images: uint8 or normalised [B, 3, H, W].
            input_ids: of the questions, int64 [B, S].
            attention_mask: bool [B, S].
            answer_ids: `[CLS] answer [SEP]`, int64 [A, T].
            answer_mask: bool [A, T].
            question_of_answer: int64 [A].
            weights: of the answers [A].
        """
        key_values = self.model.image_key_values(self.model.encode_image(images).image_embeds)
        question = self.model.ask(key_values, input_ids, attention_mask)
        states = self.model.decode(answer_ids[:, :-1], question.select(question_of_answer))
        wanted = answer_mask[:, 1:]  # vocabulary logits only where a token is to be predicted
        likelihood = self.model.log_likelihood(states[wanted], answer_ids[:, 1:][wanted])
        of_token = weights[:, None].expand_as(wanted)[wanted]
        return VqaLosses(-(likelihood * of_token).sum() / len(images))
