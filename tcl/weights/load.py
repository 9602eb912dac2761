"""A model from whatever a user names.

Importing this module gives `TCL` its `from_pretrained` and `save_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from tcl.errors import UsageError
from tcl.models.tcl import TCL
from tcl.weights.files import fetch_model
from tcl.weights.find import find_model
from tcl.weights.model_folder import load_model_folder, save_model


def load_model(source: str | Path) -> TCL:
    """Load a model in evaluation mode.

    Args:
        source: a run folder, a model folder, a published `.pth`, or a Hugging Face hub id.

    Raises:
        UsageError: nothing is there.
        CheckpointError: it does not hold a TCL model.
    """
    found = find_model(str(source))
    if found.kind == "reference":
        from tcl.weights.published import load_reference

        return load_reference(found.path)
    if found.kind == "bundle":
        raise UsageError(
            f"{found.location} is an exported bundle; its weights cannot be loaded back",
            hint="give the run or model folder that it was exported from",
        )
    return load_model_folder(found.path if found.kind == "model" else fetch_model(found.location))


TCL.from_pretrained = staticmethod(load_model)
TCL.save_pretrained = save_model  # type: ignore[assignment]
