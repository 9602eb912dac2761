"""One bundle of the tiny model for all tests of exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.bundle import Bundle, build_bundle
from tcl.models.tcl import TCL


@pytest.fixture(scope="session")
def bundle(tiny_model: TCL, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_model`, exported and verified; do not change it."""
    return build_bundle(tiny_model, tmp_path_factory.mktemp("exports") / "tiny")
