"""What only a GPU can show; `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tcl import TCL
from tcl.distributed.world import World
from tcl.encoders.torch import TorchEncoder
from tcl.tasks.build import build_training
from tcl.training.loop import fit
from tcl.weights.files import checkpoints
from tests.conftest import CAPTIONS, make_tiny_model
from tests.training.test_train import metrics, tiny_recipe

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_validates_saves_and_resumes(tmp_path: Path, precision: str) -> None:
    recipe = tiny_recipe(precision=precision, eval_every=4)
    data = recipe.data.model_copy(update={"val": ["scenes:val:8"], "workers": 1})
    recipe = recipe.model_copy(update={"data": data})
    fit(build_training(recipe, World("cuda")), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "val_r_mean" in line] == [4, 8]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    resumed = build_training(recipe, World("cuda"), checkpoints(tmp_path / "run")[0])
    assert resumed.step == 3
    resumed.train_step([next(resumed.loader.batches(0, 3))])


def test_vectors_equal_those_of_the_cpu(tiny_model: TCL) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    texts = tiny_model.processor.texts(CAPTIONS)
    on_cpu, on_gpu = TorchEncoder(tiny_model), TorchEncoder(make_tiny_model(), "cuda")
    np.testing.assert_allclose(on_gpu.encode_image(pixels), on_cpu.encode_image(pixels), atol=2e-3)
    np.testing.assert_allclose(on_gpu.encode_text(*texts), on_cpu.encode_text(*texts), atol=2e-3)
    assert torch.cuda.is_available() and on_gpu.backend == "torch-cuda"
