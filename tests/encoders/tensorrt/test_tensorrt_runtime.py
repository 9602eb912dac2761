"""The encoder on TensorRT, with all but the GPU: splitting, padding, streams, memory, and engines that do not fit."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl.encoders.base import Encoder, TokenEncoder
from tcl.encoders.bundle import Bundle, read_bundle
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.tensorrt.build import BuildOptions
from tcl.encoders.tensorrt.encoder import TensorRTEncoder, choose_precision
from tcl.encoders.tensorrt.engine import Sidecar, engines_of
from tcl.encoders.tensorrt.engines import build_engine
from tcl.encoders.tensorrt.package import Package, open_package
from tcl.encoders.tensorrt.profiles import Profiles
from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError
from tests.encoders.tensorrt import fake_tensorrt
from tests.encoders.tensorrt.fake_tensorrt import Device

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
IDS = DRAW.integers(1, 50, (9, 12))
MASK = (np.arange(12) < DRAW.integers(1, 13, (9, 1))).astype(np.int64)
PROFILES = Profiles.parse(["image=2,2,4", "text=2,2,4", "pair=2,2,4", "length=3,10,20"], 25)


@pytest.fixture
def mine(bundle: Bundle, tmp_path: Path) -> Bundle:
    return read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "mine")))


@pytest.fixture
def device(mine: Bundle, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A fake GPU, where building an engine takes the ONNX file as it is."""
    return fake_tensorrt.install_for(mine.folder, monkeypatch)


@pytest.fixture
def encoder(mine: Bundle, device: Device) -> TensorRTEncoder:
    """With engines for 2 to 4 rows."""
    found = TensorRTEncoder(mine.folder)
    for graph in mine.graphs:
        build_engine(mine, graph, "fp32", BuildOptions(PROFILES), found._package)
    return found


def test_it_is_an_encoder(encoder: TensorRTEncoder, mine: Bundle) -> None:
    found: Encoder = encoder
    assert isinstance(found, TokenEncoder)
    assert (found.backend, found.precision, found.lanes) == ("tensorrt-cuda", "fp32", 2)
    assert (found.model_hash, found.embed_dim) == (mine.model_hash, 16)
    assert found.processor.settings() == OnnxEncoder(mine.folder).processor.settings()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 9])
def test_any_batch_gives_the_same_vectors(encoder: TensorRTEncoder, mine: Bundle, batch: int) -> None:
    onnx = OnnxEncoder(mine.folder)
    for _ in range(2):  # the second time in buffers that hold something
        images, expected = encoder.encode_image(PIXELS[:batch]), onnx.encode_image(PIXELS[:batch])
        assert images.dtype == np.float32 and images.shape == (batch, 16)
        np.testing.assert_allclose(images, expected, atol=1e-6)
        texts = encoder.encode_text(IDS[:batch], MASK[:batch])
        np.testing.assert_allclose(texts, onnx.encode_text(IDS[:batch], MASK[:batch]), atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 12, 20])
def test_any_length_gives_the_same_vectors(encoder: TensorRTEncoder, mine: Bundle, length: int) -> None:
    ids, mask = DRAW.integers(1, 50, (3, length)), np.ones((3, length), np.int64)
    expected = OnnxEncoder(mine.folder).encode_text(ids, mask)
    np.testing.assert_allclose(encoder.encode_text(ids, mask), expected, atol=1e-6)
    longer = [np.pad(array, [(0, 0), (0, 30 - length)]) for array in (ids, mask)]
    np.testing.assert_allclose(encoder.encode_text(*longer), expected, atol=1e-6)


def test_tokens_and_matching(encoder: TensorRTEncoder, mine: Bundle) -> None:
    onnx = OnnxEncoder(mine.folder)
    vectors, tokens = encoder.encode_image_tokens(PIXELS[:5])
    expected = onnx.encode_image_tokens(PIXELS[:5])
    np.testing.assert_allclose(vectors, expected[0], atol=1e-6)
    np.testing.assert_allclose(tokens, expected[1], atol=1e-5)
    (states,) = encoder.session("image_key_values").run(["image_key_values"], {"image_tokens": tokens})
    for images, rows in ((states[:1], 5), (states, 5), (states[:1], 1)):  # one for all texts, one for each
        feed = {"input_ids": IDS[:rows], "attention_mask": MASK[:rows], "image_key_values": images[:rows]}
        (logits,) = encoder.session("matcher").run(["itm_logits"], feed)
        assert logits.shape == (rows, 2)
        np.testing.assert_allclose(logits, onnx.session("matcher").run(["itm_logits"], feed)[0], atol=1e-5)


def test_an_empty_batch(encoder: TensorRTEncoder) -> None:
    assert encoder.encode_image(PIXELS[:0]).shape == (0, 16)
    assert encoder.encode_text(IDS[:0], MASK[:0]).shape == (0, 16)


def test_a_text_that_is_too_long(encoder: TensorRTEncoder) -> None:
    with pytest.raises(UsageError, match="a text of 21 tokens is longer than the engine takes, 20"):
        encoder.encode_text(np.ones((1, 21), np.int64), np.ones((1, 21), np.int64))


def test_chunks_of_one_batch_overlap(encoder: TensorRTEncoder, device: Device) -> None:
    encoder.encode_image(PIXELS[:4])
    assert device.most_busy == 1
    encoder.encode_image(PIXELS)
    assert device.most_busy == 2


def test_threads_share_it(encoder: TensorRTEncoder, mine: Bundle) -> None:
    expected = OnnxEncoder(mine.folder).encode_image(PIXELS)
    sizes = [1 + number % 9 for number in range(60)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda size: encoder.encode_image(PIXELS[:size]), sizes))
    for size, vectors in zip(sizes, found, strict=True):
        np.testing.assert_allclose(vectors, expected[:size], atol=1e-6)


def test_memory_is_given_back(encoder: TensorRTEncoder, device: Device) -> None:
    encoder.encode_image(PIXELS[:2])
    encoder.encode_image(PIXELS)  # in larger buffers
    held = len(device.memory)
    encoder.encode_image(PIXELS)
    assert len(device.memory) == held == 2 * 2 * 2  # streams, ports, and a twin of each
    encoder._sessions.clear()
    gc.collect()
    assert device.memory == {}


def test_too_little_memory_is_one_line_and_not_the_end(encoder: TensorRTEncoder, device: Device) -> None:
    encoder.encode_image(PIXELS[:2])
    device.limit = sum(ctypes.sizeof(block) for block in device.memory.values()) + 100
    with pytest.raises(TclError, match="the GPU: out of memory") as caught:
        encoder.encode_image(PIXELS)
    assert "--profile image=" in str(caught.value.hint)
    device.limit = 1 << 30
    for _ in range(4):  # every slot is free again
        assert encoder.encode_image(PIXELS).shape == (9, 16)


def test_a_missing_engine_is_built(mine: Bundle, device: Device) -> None:
    said: list[str] = []
    with pytest.raises(CheckpointError, match="has no engine of image_encoder fp32") as caught:
        TensorRTEncoder(mine.folder, rebuild=False).encode_image(PIXELS)
    assert str(caught.value.hint).startswith("tcl export --trt --model")
    assert TensorRTEncoder(mine.folder, say=said.append).encode_image(PIXELS).shape == (9, 16)
    assert len(said) == 1 and "has no engine of image_encoder fp32; building it from the ONNX file" in said[0]
    assert (mine.folder / "engines" / "nvidia-h200-sm90-tensorrt11.4.0.106" / "image_encoder.fp32.engine").is_file()


def _edit(mine: Bundle, **changes: Any) -> None:
    (engine,) = engines_of(mine, "image_encoder", "fp32")
    path = engine.path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "NVIDIA L4", "compute_capability": "8.9"}, "was built for NVIDIA L4, and here is NVIDIA H200"),
        ({"version": "10.7.0"}, "was built by TensorRT 10.7.0, and here is TensorRT 11.4.0.106"),
        ({"onnx": {"image_encoder.onnx": "0"}}, "was built from another ONNX file"),
        ({"sha256": "0"}, "damaged"),
    ],
)
def test_an_engine_that_does_not_fit_is_built_anew(
    encoder: TensorRTEncoder, mine: Bundle, changes: dict[str, Any], reason: str
) -> None:
    _edit(mine, **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        TensorRTEncoder(mine.folder, rebuild=False).encode_image(PIXELS)
    assert "\n" not in caught.value.message
    said: list[str] = []
    again = TensorRTEncoder(mine.folder, say=said.append)
    np.testing.assert_array_equal(again.encode_image(PIXELS), encoder.encode_image(PIXELS))
    assert len(said) == 1 and reason in said[0]
    assert again.session("image_encoder").built.sidecar.options.profiles == PROFILES  # as it was


def test_an_engine_that_cannot_be_built_anew(
    encoder: TensorRTEncoder, mine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit(mine, version="10.7.0")
    (mine.folder / "image_encoder.onnx").write_bytes(b"edited")
    with pytest.raises(CheckpointError, match=r"was built by .*; building it failed: .*image_encoder\.onnx: is not"):
        TensorRTEncoder(mine.folder).encode_image(PIXELS)


def test_a_plan_that_tensorrt_refuses(encoder: TensorRTEncoder, mine: Bundle) -> None:
    (engine,) = engines_of(mine, "image_encoder", "fp32")
    engine.path.write_bytes(b"of another safety level")
    _edit(mine, sha256=hashlib.sha256(engine.path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match=r"cannot load it: IRuntime::deserialize.* assertion failed"):
        TensorRTEncoder(mine.folder, rebuild=False).encode_image(PIXELS)


def test_no_gpu(mine: Bundle, device: Device) -> None:
    device.count = 0
    with pytest.raises(UsageError, match="computes on a GPU, and sees none here") as caught:
        TensorRTEncoder(mine.folder)
    assert "--backend onnx" in str(caught.value.hint)


def test_no_cuda_python(mine: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.encoders.tensorrt.cuda.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="cuda-python") as caught:
        TensorRTEncoder(mine.folder)
    assert caught.value.hint == "pip install '.[trt]'"


def test_precisions(mine: Bundle, every_precision: Bundle) -> None:
    assert choose_precision(mine, "auto") == "fp32"
    assert choose_precision(every_precision, "auto") == "fp16"
    assert choose_precision(every_precision, "int8") == "int8"
    with pytest.raises(UsageError, match="has no bf16 graphs, only fp32"):
        choose_precision(mine, "bf16")
    with pytest.raises(UsageError, match="no such precision"):
        choose_precision(mine, "fp4")


def test_the_fake_has_what_tensorrt_has() -> None:
    recorded = json.loads((Path(__file__).parents[2] / "recorded" / "tensorrt_api.json").read_text())
    for version in recorded.values():
        for fake, name in ((fake_tensorrt.Context, "IExecutionContext"), (fake_tensorrt.Engine, "ICudaEngine")):
            known = version["classes"][name]
            names = {member for member in vars(fake) if not member.startswith("_")}
            assert names and names <= {*known["methods"], *known["readable"], *known["settable"]}


def test_a_real_engine_is_loaded_as_far_as_a_gpu_is_needed(mine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the real runtime refuses the engine by its own message, which comes out in one line."""
    pytest.importorskip("tensorrt_rtx")
    cudart = pytest.importorskip("cuda.bindings.runtime")
    if cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    from tcl.encoders.tensorrt.session import EngineSession

    package: Package = open_package("rtx")
    built = build_engine(mine, "image_key_values", "fp32", BuildOptions(PROFILES), package)
    with pytest.raises(CheckpointError, match=r"cannot load it: .*Cuda Runtime") as caught:
        EngineSession(package, built)
    assert "\n" not in caught.value.message


def test_it_loads_without_torch_and_without_onnx_runtime() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "timm", "transformers"]
    script = f"import sys; sys.modules.update(dict.fromkeys({heavy})); import tcl.encoders.tensorrt.encoder"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_on_a_gpu(every_precision: Bundle, tmp_path: Path, precision: str) -> None:
    folder = Path(shutil.copytree(every_precision.folder, tmp_path / "bundle"))
    onnx, encoder = OnnxEncoder(folder, "fp32"), TensorRTEncoder(folder, precision)
    bound = {"fp32": 0.99999, "fp16": 0.9995, "bf16": 0.998, "fp8": 0.97}[precision]
    for found, expected in (
        (encoder.encode_image(PIXELS), onnx.encode_image(PIXELS)),
        (encoder.encode_text(IDS, MASK), onnx.encode_text(IDS, MASK)),
    ):
        assert np.isfinite(found).all() and (found * expected).sum(1).min() >= bound


def test_sidecars_are_read_as_they_are_written(encoder: TensorRTEncoder, mine: Bundle) -> None:
    sidecar: Sidecar = engines_of(mine, "matcher", "fp32")[0].sidecar
    assert (sidecar.gpu, sidecar.compute_capability, sidecar.driver, sidecar.cuda) == (
        "NVIDIA H200",
        "9.0",
        "13.1",
        "13.0",
    )
    assert sidecar.inputs["image_key_values"] == ("images", 2, 2, 4, 17, 8)
