"""Which encoder a command gets, and what it says when it cannot have one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export import runtime
from export.bundle import Bundle
from export.runtime import OnnxEncoder, TorchEncoder, open_encoder, open_session
from tcl.errors import CheckpointError, MissingExtraError, UsageError


@pytest.fixture
def workplace(bundle: Bundle, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one run and one bundle."""
    shutil.copytree(tiny_model_folder, tmp_path / "runs" / "tiny" / "model")
    shutil.copytree(bundle.folder, tmp_path / "exports" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = runtime.find_spec
    monkeypatch.setattr(runtime, "find_spec", lambda name: None if name == package else find(name))


def test_auto(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_encoder(device="cpu"), TorchEncoder)
    assert isinstance(open_encoder("exports/tiny"), OnnxEncoder)
    assert isinstance(open_encoder(backend="onnx"), OnnxEncoder)
    _without(monkeypatch, "torch")
    assert isinstance(open_encoder(), OnnxEncoder)


def test_auto_takes_a_bundle_where_there_is_no_run(workplace: Path) -> None:
    shutil.rmtree("runs")
    assert isinstance(open_encoder(), OnnxEncoder)


def test_both_backends_are_one_model(workplace: Path) -> None:
    torch_encoder, onnx_encoder = open_encoder(device="cpu"), open_encoder(backend="onnx")
    assert torch_encoder.model_hash == onnx_encoder.model_hash
    assert torch_encoder.embed_dim == onnx_encoder.embed_dim == 16
    assert torch_encoder.processor.settings() == onnx_encoder.processor.settings()
    assert (torch_encoder.backend, onnx_encoder.backend) == ("torch-cpu", "onnx-cpu")


def test_combinations_that_cannot_work(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="bundle, which torch cannot run"):
        open_encoder("exports/tiny", "torch")
    with pytest.raises(UsageError, match="no exported bundle"):
        open_encoder("runs/tiny", "onnx")
    with pytest.raises(UsageError, match="no such model"):
        open_encoder("runs/none")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="sees no GPU"):
        open_encoder("runs/tiny", device="cuda")
    with pytest.raises(UsageError, match="on the CPU"):
        open_encoder("exports/tiny", device="cuda")


def test_no_model_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no model") as caught:
        open_encoder()
    assert "tcl pretrain" in str(caught.value.hint)


def test_missing_packages_are_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "onnxruntime")
    with pytest.raises(MissingExtraError) as caught:
        open_encoder("exports/tiny")
    assert caught.value.hint == "pip install 'tcl-vision-language[onnx]'"
    _without(monkeypatch, "torch")
    with pytest.raises(MissingExtraError, match="torch"):
        open_encoder("runs/tiny")


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.onnx"):
        open_session(tmp_path / "x.onnx")


NO_TORCH = """
import sys
sys.modules["torch"] = None  # any import of it fails
from tcl_cli.main import run
code = run(["embed", "scenes:val:5", "--out", "v.npy", "--model", sys.argv[1]])
code = code or run(["embed", "scenes:val:5", "--kind", "text", "--out", "t.parquet", "--model", sys.argv[1]])
code = code or run(["search", "a red circle", "--index", "v.npy", "--model", sys.argv[1]])
assert not any(name.partition(".")[0] in ("torch", "torchvision", "timm") and sys.modules[name] for name in sys.modules)
sys.exit(code)
"""


def test_embedding_and_search_with_a_bundle_need_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(bundle.folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "v.npy").shape == (5, 16)
