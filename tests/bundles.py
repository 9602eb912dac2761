"""Bundles of the tiny model for all tests of exports."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.bundle import build_bundle
from export.verify.cases import Samples, calibration
from export.verify.checks import Bounds
from export.verify.references import TorchReference
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import PRECISIONS
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig, Task
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tests.conftest import CAPTIONS

LABELS: dict[Task, list[str]] = {
    "entailment": ["no", "maybe", "yes"],
    "nlvr2": ["False", "True"],
    "text_assignment": ["first", "second", "neither"],
    "vqa": ["a dog", "red", "two", "a small red circle", "green star"],
}

SCENES = [f"scenes:val:0:{number}" for number in range(4)]
FLOAT8 = Bounds({"fp8": 0.97})
"""Sums over 32 channels average little rounding away; a base model with random weights has a cosine of 0.993."""


def calibrated(model: TCL) -> Any:
    """Typical inputs for fp8; int8 finds its ranges for every batch."""
    return calibration(TorchReference(model), Samples(model.processor, SCENES, CAPTIONS), static=False)


@pytest.fixture(scope="session")
def bundle(tiny_model: TCL, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_model`, exported in float32 and verified; do not change it."""
    return build_bundle(tiny_model, tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture(scope="session")
def every_precision(tiny_model: TCL, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_model`, exported in all precisions and verified; do not change it."""
    target = tmp_path_factory.mktemp("exports") / "every"
    return build_bundle(tiny_model, target, PRECISIONS, images=SCENES, texts=CAPTIONS, bounds=FLOAT8)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of `bundle` to be damaged."""
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def fine_tuned(tiny_model: TCL) -> Callable[[Task], TaskModel]:
    """`fine_tuned("vqa")` is a tiny model with a random head."""

    def make(task: Task) -> TaskModel:
        torch.manual_seed(1)
        head = HeadConfig(task=task, labels=LABELS[task], decoder_layers=2)
        model = attach_head(copy.deepcopy(tiny_model), head).eval()
        model.model_hash = f"hash of {task}"
        with torch.no_grad():
            for parameter in model.parameters():  # twins of doubled layers, and heads, must differ from what they copy
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return make
