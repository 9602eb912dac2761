"""A place to run commands in: one run, one folder of images, the working directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_cli.main import run


@dataclass
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def tcl(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`tcl("embed", "images/")` runs a command line, errors and exit code included."""

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        code = run(list(arguments))
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture
def workplace(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `runs/tiny` and `images/`."""
    shutil.copytree(tiny_model_folder, tmp_path / "runs" / "tiny" / "model")
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png", "10.png"):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
