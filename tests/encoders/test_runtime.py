"""Which encoder a command gets, and what it says when it cannot have one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tcl.encoders import onnx
from tcl.encoders import open as runtime
from tcl.encoders.bundle import Bundle
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.open import open_encoder
from tcl.encoders.sessions import PROVIDERS, check_provider, open_session
from tcl.encoders.torch import TorchEncoder
from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def workplace(bundle: Bundle, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one run and one bundle."""
    shutil.copytree(tiny_model_folder, tmp_path / "runs" / "tiny" / "model")
    shutil.copytree(bundle.folder, tmp_path / "exports" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in (runtime, onnx):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find_spec(name))


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
    with pytest.raises(UsageError, match="--device cuda: this ONNX Runtime is built for the CPU"):
        open_encoder("exports/tiny", device="cuda").encode_image(PIXELS)


@pytest.mark.parametrize(
    ("model", "precision", "message"),
    [
        ("runs/tiny", "bf16", "torch computes in fp32 on cpu"),
        ("runs/tiny", "int8", "torch computes in fp32 on cpu"),
        ("exports/tiny", "fp16", "has no fp16 graphs, only fp32"),
        ("exports/tiny", "fp4", "no such precision"),
        ("exports/every", "bf16", "ONNX Runtime does not run bf16 graphs on cpu"),
        ("exports/every", "fp8", "ONNX Runtime does not run fp8 graphs on cpu"),
    ],
)
def test_precisions_that_cannot_be_had(
    workplace: Path, every_precision: Bundle, model: str, precision: str, message: str
) -> None:
    shutil.copytree(every_precision.folder, "exports/every")
    with pytest.raises(UsageError, match=message):
        open_encoder(model, device="cpu", precision=precision)  # type: ignore[arg-type]


def test_a_precision_that_runs_is_named_where_the_one_asked_for_does_not(
    bundle: Bundle, every_precision: Bundle
) -> None:
    for precision in ("fp16", "bf16"):
        with pytest.raises(UsageError) as caught:
            OnnxEncoder(bundle.folder, precision)
        assert caught.value.hint == "leave out --precision, which then is fp32"
    with pytest.raises(UsageError) as caught:
        OnnxEncoder(every_precision.folder, "bf16")
    assert caught.value.hint == "use --backend trt, or leave out --precision, which then is fp32"


def test_the_precision_asked_for_is_the_one_that_runs(every_precision: Bundle, bundle: Bundle) -> None:
    assert OnnxEncoder(every_precision.folder).precision == "fp32"
    exact = OnnxEncoder(bundle.folder).encode_image(PIXELS)
    differences = {}
    for precision in ("fp32", "fp16", "int8"):
        encoder = OnnxEncoder(every_precision.folder, precision)
        assert encoder.precision == precision
        differences[precision] = np.abs(encoder.encode_image(PIXELS) - exact).max()
    assert differences["fp32"] == 0 < differences["fp16"] < differences["int8"] < 0.1


def test_lanes_share_a_session_and_give_the_same_vectors(bundle: Bundle) -> None:
    encoder = OnnxEncoder(bundle.folder, lanes=4)
    assert encoder.lanes == 4 and OnnxEncoder(bundle.folder).lanes == 1
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: encoder.encode_image(PIXELS), range(16)))
    expected = OnnxEncoder(bundle.folder).encode_image(PIXELS)
    for vectors in found:
        assert np.array_equal(vectors, found[0])
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert list(encoder._sessions) == ["image_encoder"]


def test_a_gpu_that_onnx_runtime_cannot_use_is_never_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU build lists its provider without a GPU, and then falls back without an exception."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(PROVIDERS.values()))
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(UsageError, match="cannot use a GPU"):
        OnnxEncoder(bundle.folder, device="cuda").encode_image(PIXELS)
    with pytest.raises(TclError, match="not on the CPU"):
        check_provider(["AzureExecutionProvider", "CPUExecutionProvider"], "CPUExecutionProvider")


def test_no_model_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no model") as caught:
        open_encoder()
    assert "tcl pretrain" in str(caught.value.hint)


def test_missing_packages_are_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "onnxruntime")
    with pytest.raises(MissingExtraError) as caught:
        open_encoder("exports/tiny")
    assert caught.value.hint == "pip install '.[onnx]'"
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
