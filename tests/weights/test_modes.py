"""Who may read the files of a model is for the umask to say, as of any other file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcl import TCL
from tcl.weights.files import save_tensors
from tcl.weights.model_folder import write_model


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_follow_the_umask(umask: int, tiny_model: TCL, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_model(tiny_model, tmp_path)
        save_tensors(tiny_model.state_dict(), tmp_path / "extra.safetensors", {"kind": "test"})
        save_tensors(tiny_model.state_dict(), tmp_path / "extra.safetensors")  # over the one before
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) > 3 and set(modes.values()) == {0o666 & ~umask}, modes
