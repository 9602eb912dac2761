"""From the TCL model to the model of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcl.models.heads import HeadConfig

if TYPE_CHECKING:
    from tcl.models.task_model import TaskModel
    from tcl.models.tcl import TCL


def attach_head(model: TCL, head: HeadConfig) -> TaskModel:
    """A model for a task, on the encoders of `model`, which it takes over; heads that fit are kept.

    The new parts start as published: random classification heads, the decoder of vqa from the fusion layers, and for
    two images every fusion layer twice.

    Raises:
        UsageError: `model` reads two images and the task one, so its fusion layers are of no use to it.
    """
    from tcl.models.classifier import Classifier, TextAssigner
    from tcl.models.vqa import VqaModel

    if head.task == "vqa":
        return VqaModel(model, head)
    if head.task == "text_assignment":
        return TextAssigner(model, head)
    return Classifier(model, head)
