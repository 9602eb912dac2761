"""What a fine-tuned model has on top of TCL: the answer to "which task, which classes".

`config.json` of a model folder holds it under `head`; a model without a task has none.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tcl.config.recipe import Section

Task = Literal["entailment", "nlvr2", "text_assignment", "vqa"]


class HeadConfig(Section):
    """A task and its classes."""

    task: Task = Field(description="what the model was fine-tuned for")
    labels: list[str] = Field(description="the classes in the order of the logits; of vqa the answers it chooses from")
    decoder_layers: int = Field(6, ge=1, description="layers of the answer decoder; vqa alone has one")

    @property
    def images_per_text(self) -> int:
        """Images that belong to one text of the task."""
        return 2 if self.task in ("nlvr2", "text_assignment") else 1

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        least = 1 if self.task == "vqa" else 2
        if len(self.labels) < least:
            raise ValueError(f"{self.task} needs at least {least} labels, not {len(self.labels)}")
        if len(set(self.labels)) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"the label {twice!r} stands there twice")
        return self
