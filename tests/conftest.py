"""Shared fixtures: a tiny model, tiny pairs, and the recorded reference."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread per test process: the tests run side by side, and float results do not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from safetensors.torch import load_file

from tcl import TCL
from tcl.config.recipe import ModelConfig
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer
from tcl.weights.files import hash_model

pytest_plugins = ["tests.bundles"]


@pytest.fixture(autouse=True)
def urls_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the files of a test may name beside URLs of the web and of object stores: files in memory."""
    monkeypatch.setenv("TCL_URLS", "memory unsteady")


GOLDEN = Path(__file__).parent / "golden"

# The same examples in every run: a test that fails does so for everyone.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")

TINY: dict[str, Any] = {
    "image_encoder": "vit_tiny_patch16_224",
    "image_encoder_args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    "image_size": 32,
    "text_encoder_args": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    },
    "pretrained": False,
    "fusion_layer": 2,
    "embed_dim": 16,
    "max_length": 25,
    "tokenizer": "train",
    "vocab_size": 300,
}

CAPTIONS = [
    "a small red circle left of a blue square",
    "a large green star at the top",
    "two yellow triangles below a purple ring",
    "a dog runs on the grass near a white house",
]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TCL_MODEL", raising=False)
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_tiny_model(seed: int = 0, **changes: Any) -> TCL:
    """A TCL model of a few thousand weights, every one of them random, biases and norms included."""
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(TINY | changes)
    tokenizer = CaptionTokenizer.train(CAPTIONS, config.vocab_size)
    model = TCL.from_config(config, tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.processor = Processor(tokenizer, (config.image_size, config.image_size), config.max_length)
    model.model_hash = hash_model(model)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> TCL:
    """A tiny model in evaluation mode; do not change it."""
    return make_tiny_model()


@pytest.fixture
def fresh_model(tiny_model: TCL) -> TCL:
    """A tiny model to build on."""
    return copy.deepcopy(tiny_model)


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_model: TCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model`, saved; do not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """`golden("pretrain")` gives the recorded tensors and the JSON of a case."""

    def read(case: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = GOLDEN / f"{case}.safetensors"
        values = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))
        return load_file(tensors) if tensors.is_file() else {}, values

    return read
