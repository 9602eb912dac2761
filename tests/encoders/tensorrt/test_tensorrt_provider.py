"""ONNX Runtime's TensorRT provider, with all but the provider: what it is told, and that it is never something else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tcl.encoders.bundle import Bundle, read_bundle
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.open import open_encoder
from tcl.encoders.sessions import PROVIDERS
from tcl.encoders.tensorrt import provider as tensorrt_provider
from tcl.encoders.tensorrt.profiles import Profiles
from tcl.encoders.tensorrt.provider import settings
from tcl.errors import MissingExtraError, UsageError
from tcl.files.cache import CacheError, cache_folder

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
IDS = DRAW.integers(1, 50, (9, 12))
MASK = (np.arange(12) < DRAW.integers(1, 13, (9, 1))).astype(np.int64)


class Opened:
    """What sessions were opened with and given.

    Attributes:
        providers: of each session.
        shapes: of all inputs.
    """

    def __init__(self) -> None:
        self.providers: list[list[Any]] = []
        self.shapes: list[tuple[int, ...]] = []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Sessions compute on the CPU and say that they are TensorRT."""
    seen = Opened()
    plain = onnxruntime.InferenceSession

    class Session:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            seen.providers.append(providers)
            self._session = plain(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [PROVIDERS["trt"], PROVIDERS["cuda"], PROVIDERS["cpu"]]

        def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
            seen.shapes.extend(array.shape for array in feed.values())
            return list(self._session.run(outputs, feed))

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return seen


def test_what_the_provider_is_told(every_precision: Bundle, opened: Opened) -> None:
    encoder = OnnxEncoder(every_precision.folder, device="trt", lanes=4)
    assert (encoder.backend, encoder.precision, encoder.lanes) == ("onnx-trt-cuda", "fp16", 1)
    encoder.encode_text(IDS, MASK)
    encoder.encode_text(IDS, MASK)
    ((first, second),) = opened.providers
    assert first[0] == "TensorrtExecutionProvider" and second == "CUDAExecutionProvider"
    assert first[1]["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert first[1]["trt_profile_opt_shapes"] == "input_ids:64x25,attention_mask:64x25"
    assert first[1]["trt_profile_max_shapes"] == "input_ids:256x25,attention_mask:256x25"
    assert first[1]["trt_engine_cache_enable"] == "True" and first[1]["trt_fp16_enable"] == "True"
    folder = Path(first[1]["trt_engine_cache_path"])
    assert folder.is_dir() and folder.parent == cache_folder() / "onnxruntime-tensorrt"


def test_that_an_engine_is_built_is_said(every_precision: Bundle, opened: Opened) -> None:
    said: list[str] = []
    for _ in range(2):  # the stand-in keeps none
        OnnxEncoder(every_precision.folder, device="trt", say=said.append).encode_image(PIXELS)
    assert len(said) == 2 and "image_encoder.fp16.onnx: building its engine" in said[0]
    (Path(opened.providers[-1][0][1]["trt_engine_cache_path"]) / "kept.engine").touch()
    OnnxEncoder(every_precision.folder, device="trt", say=said.append).encode_image(PIXELS)
    assert len(said) == 2


def test_half_precision_only_where_the_graph_has_it(tmp_path: Path) -> None:
    ranges = Profiles.parse([], 25).of({"pixel_values": ("batch", 3, 32, 32)})
    found = settings(tmp_path, ranges, "fp32")
    assert found["trt_fp16_enable"] == "False"
    assert found["trt_profile_opt_shapes"] == "pixel_values:64x3x32x32"


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_any_batch_gives_the_same_vectors(
    bundle: Bundle, opened: Opened, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    narrow = Profiles.parse(["image=2,2,4", "text=2,2,4", "length=3,10,20"], 25)
    monkeypatch.setattr(tensorrt_provider.Profiles, "parse", lambda given, length: narrow)
    encoder = OnnxEncoder(bundle.folder, device="trt")
    found = encoder.encode_image(PIXELS[:batch]), encoder.encode_text(IDS[:batch], MASK[:batch])
    assert all(2 <= shape[0] <= 4 for shape in opened.shapes)
    monkeypatch.undo()
    plain = OnnxEncoder(bundle.folder)
    expected = plain.encode_image(PIXELS[:batch]), plain.encode_text(IDS[:batch], MASK[:batch])
    for vectors, others in zip(found, expected, strict=True):
        assert vectors.shape == (batch, 16)
        np.testing.assert_allclose(vectors, others, atol=1e-6)


def test_engines_of_another_file_or_machine_are_not_taken(
    bundle: Bundle, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(own: Bundle) -> str:
        OnnxEncoder(own.folder, "fp32", device="trt").encode_image(PIXELS)
        return str(opened.providers[-1][0][1]["trt_engine_cache_path"])

    first = folder(bundle)
    other = read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")))
    assert folder(bundle) == folder(other) == first  # the same files
    monkeypatch.setattr(tensorrt_provider, "machine", lambda: {"gpus": ["another"]})
    assert folder(bundle) != first


def test_a_cache_folder_that_cannot_be_written(
    bundle: Bundle, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot write to the cache folder"):
        OnnxEncoder(bundle.folder, device="trt").encode_image(PIXELS)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_it_is_never_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = OnnxEncoder(bundle.folder, device="trt")
    with pytest.raises(UsageError, match="--backend onnx-trt: this ONNX Runtime is built for the CPU") as caught:
        encoder.encode_image(PIXELS)
    assert "onnx-gpu" in str(caught.value.hint)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [PROVIDERS["cuda"], PROVIDERS["cpu"]])
    with pytest.raises(UsageError, match="built without its TensorRT provider"):
        encoder.encode_image(PIXELS)
    # The GPU build lists its providers without their libraries, and then falls back without an exception.
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None, raising=False)
    with pytest.raises(UsageError, match="cannot use TensorRT here, and would run on CPUExecutionProvider") as caught:
        encoder.encode_image(PIXELS)
    assert "--backend onnx --device cuda" in str(caught.value.hint)


def test_as_a_backend(every_precision: Bundle, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(every_precision.folder, tmp_path / "exports" / "tiny")
    monkeypatch.chdir(tmp_path)
    for device in ("auto", "cuda"):
        assert open_encoder(backend="onnx-trt", device=device).backend == "onnx-trt-cuda"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="TensorRT computes on a GPU alone"):
        open_encoder(backend="onnx-trt", device="cpu")
    for precision in ("int8", "bf16", "fp8"):
        with pytest.raises(UsageError, match=f"does not run {precision} graphs by its TensorRT provider"):
            open_encoder(backend="onnx-trt", precision=precision)  # type: ignore[arg-type]
    monkeypatch.setattr("tcl.encoders.onnx.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        open_encoder(backend="onnx-trt")
    assert caught.value.hint == "pip install '.[onnx-gpu]'"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_the_provider_itself(every_precision: Bundle, precision: str) -> None:
    encoder, plain = OnnxEncoder(every_precision.folder, precision, device="trt"), OnnxEncoder(every_precision.folder)
    for found, expected in (
        (encoder.encode_image(PIXELS), plain.encode_image(PIXELS)),
        (encoder.encode_text(IDS, MASK), plain.encode_text(IDS, MASK)),
    ):
        assert np.isfinite(found).all() and (found * expected).sum(1).min() >= 0.9995
