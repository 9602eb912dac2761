"""A model from whatever a user names."""

from __future__ import annotations

from pathlib import Path

from tcl.errors import UsageError
from tcl.models.tcl import TCL
from tcl.weights.files import fetch_model
from tcl.weights.find import find_model
from tcl.weights.model_folder import load_model_folder


def load_model(source: str | Path) -> TCL:
    """Load a run, a model folder, a published `.pth` or a hub id; see `TCL.from_pretrained`."""
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
