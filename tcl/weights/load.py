"""A model from whatever a user names.

Importing this module gives `TCL` its `from_pretrained` and `save_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from tcl.models.tcl import TCL
from tcl.weights.find import find_model
from tcl.weights.model_folder import load_model_folder, save_model
from tcl.weights.published import WHOLE, Reference, build_fine_tuned, build_reference
from tcl.weights.sources import open_source


def load_model(source: str | Path, *, for_task: bool = False, answers: list[str] | None = None) -> TCL:
    """Load a model in evaluation mode.

    Args:
        source: a run folder, a model folder, a published `.pth`, or a Hugging Face hub id.
        for_task: take a published checkpoint of VQA, entailment, NLVR2 or text assignment too, see `build_fine_tuned`.
        answers: what such a model of VQA chooses from; it has none of its own.

    Raises:
        UsageError: nothing is there.
        CheckpointError: it does not hold a TCL model.
    """
    opened = open_source(find_model(str(source)))
    if not isinstance(opened, Reference):
        return load_model_folder(opened)
    if for_task and opened.layout.kind not in WHOLE:
        return build_fine_tuned(opened, answers=answers)
    return build_reference(opened)


TCL.from_pretrained = staticmethod(load_model)
TCL.save_pretrained = save_model  # type: ignore[assignment]
