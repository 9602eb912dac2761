"""The exported graphs compute what the model computes, name their inputs as promised, and give nothing away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.bundle import Bundle
from export.onnx import export_onnx
from export.runtime import OnnxEncoder, TorchEncoder, open_session
from tcl.models.tcl import TCL

BOUND = 1e-5
VOCABULARY = 30  # ids below it exist in the tiny model


@pytest.fixture(scope="module")
def encoders(tiny_model: TCL, bundle: Bundle) -> tuple[TorchEncoder, OnnxEncoder]:
    return TorchEncoder(tiny_model), OnnxEncoder(bundle.folder, threads=1)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_images_equal_torch(encoders: tuple[TorchEncoder, OnnxEncoder], batch: int) -> None:
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, 32, 32), dtype=np.uint8)
    expected, actual = (encoder.encode_image(pixels) for encoder in encoders)
    assert actual.shape == (batch, 16) and actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=BOUND)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-6)


def _tokens(batch: int, length: int, padded: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    draw = np.random.default_rng(100 * batch + length)
    ids = draw.integers(0, VOCABULARY, (batch, length))
    lengths = draw.integers(1, length + 1, batch) if padded else np.full(batch, length)
    return ids, (np.arange(length) < lengths[:, None]).astype(np.int64)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_texts_equal_torch(encoders: tuple[TorchEncoder, OnnxEncoder], batch: int, padded: bool) -> None:
    for length in range(1, 26):
        expected, actual = (encoder.encode_text(*_tokens(batch, length, padded)) for encoder in encoders)
        assert actual.shape == (batch, 16)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=BOUND)


def test_padding_changes_nothing(encoders: tuple[TorchEncoder, OnnxEncoder]) -> None:
    ids, mask = _tokens(1, 5, padded=False)
    wide_ids = np.pad(ids, ((0, 0), (0, 9)), constant_values=7)
    expected = encoders[1].encode_text(ids, mask)
    actual = encoders[1].encode_text(wide_ids, np.pad(mask, ((0, 0), (0, 9))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=BOUND)


def test_names_and_axes(bundle: Bundle) -> None:
    image, text = (open_session(bundle.folder / f"{name}_encoder.onnx", 1) for name in ("image", "text"))
    assert [(node.name, node.shape, node.type) for node in image.get_inputs()] == [
        ("pixel_values", ["batch", 3, 32, 32], "tensor(uint8)")
    ]
    assert [(node.name, node.shape, node.type) for node in text.get_inputs()] == [
        ("input_ids", ["batch", "sequence"], "tensor(int64)"),
        ("attention_mask", ["batch", "sequence"], "tensor(int64)"),
    ]
    for session, name in ((image, "image_embeds"), (text, "text_embeds")):
        assert [(node.name, node.shape) for node in session.get_outputs()] == [(name, ["batch", 16])]


def test_only_standard_operators_and_no_local_paths(bundle: Bundle) -> None:
    for path in bundle.folder.glob("*.onnx"):
        assert {(entry.domain, entry.version) for entry in onnx.load(path).opset_import} == {("", 20)}
        content = path.read_bytes()
        assert b".py" not in content and b"site-packages" not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_metadata_names_the_model(bundle: Bundle) -> None:
    meta = open_session(bundle.folder / "image_encoder.onnx", 1).get_modelmeta()
    assert meta.custom_metadata_map["tcl.model_hash"] == bundle.model_hash
    assert "image_size" in meta.custom_metadata_map["tcl.preprocessing"]


def test_same_model_same_bytes_and_no_chatter(
    tiny_model: TCL, bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in export_onnx(tiny_model, tmp_path):
        assert path.read_bytes() == (bundle.folder / path.name).read_bytes()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
