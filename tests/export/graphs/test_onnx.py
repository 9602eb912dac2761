"""The exported graphs compute what the model computes, name their inputs as promised, and give nothing away."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from export.graphs import write as exporter
from export.graphs.vision import is_plain
from export.graphs.write import export_onnx
from export.verify.cases import Samples, calibration
from export.verify.onnx import verify
from export.verify.references import TorchReference
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import PRECISIONS
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.sessions import open_session
from tcl.encoders.torch import TorchEncoder
from tcl.errors import TclError, UsageError
from tcl.models.tcl import TCL
from tests.bundles import FLOAT8, calibrated
from tests.conftest import make_tiny_model

BOUND = 1e-5
VOCABULARY = 30  # ids below it exist in the tiny model


@pytest.fixture(scope="module")
def encoders(tiny_model: TCL, bundle: Bundle) -> tuple[TorchEncoder, OnnxEncoder]:
    return TorchEncoder(tiny_model), OnnxEncoder(bundle.folder, lanes=2)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_images_equal_torch(encoders: tuple[TorchEncoder, OnnxEncoder], batch: int) -> None:
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, 32, 32), dtype=np.uint8)
    expected, actual = (encoder.encode_image(pixels) for encoder in encoders)
    assert actual.shape == (batch, 16) and actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=BOUND)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-6)
    vectors, tokens = encoders[1].encode_image_tokens(pixels)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=BOUND)
    np.testing.assert_allclose(tokens, encoders[0].encode_image_tokens(pixels)[1], rtol=0, atol=BOUND)


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
    def ports(name: str) -> list[tuple[str, list[object], str]]:
        session = open_session(bundle.folder / f"{name}.onnx", 1)
        return [(node.name, node.shape, node.type) for node in (*session.get_inputs(), *session.get_outputs())]

    pixels = ("pixel_values", ["batch", 3, 32, 32], "tensor(uint8)")
    text = [(name, ["batch", "sequence"], "tensor(int64)") for name in ("input_ids", "attention_mask")]
    vectors, tokens = (("image_embeds", ["batch", 16]), ("image_tokens", ["batch", 17, 32]))
    real = "tensor(float)"
    assert ports("image_encoder") == [pixels, (*vectors, real)]
    assert ports("text_encoder") == [*text, ("text_embeds", ["batch", 16], real)]
    assert ports("image_tokens") == [pixels, (*vectors, real), (*tokens, real)]
    of_image = [2, 2, 4, 17, 8]  # fusion layers, key and value, heads, tokens, width
    key_values = ("image_key_values", ["batch", *of_image], real)
    assert ports("image_key_values") == [(*tokens, real), key_values]
    images = ("image_key_values", ["images", *of_image], real)
    assert ports("matcher") == [*text, images, ("itm_logits", ["batch", 2], real)]


def test_the_last_layer_computes_the_first_token_alone(bundle: Bundle) -> None:
    def products(name: str) -> list[str]:
        graph = onnx.load(bundle.folder / f"{name}.onnx").graph
        shapes = onnx.shape_inference.infer_shapes(onnx.load(bundle.folder / f"{name}.onnx")).graph.value_info
        rows = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in shapes if
                len(value.type.tensor_type.shape.dim) == 3}  # fmt: skip
        return [node.name for node in graph.node if node.op_type == "MatMul" and rows.get(node.output[0]) == 1]

    block = "visual_encoder.blocks.1"
    of_first = [f"{block}.attn.proj", f"{block}.mlp.fc1", f"{block}.mlp.fc2"]
    assert products("image_encoder") == of_first and products("image_tokens") == []


def test_only_standard_operators_and_no_local_paths(every_precision: Bundle) -> None:
    paths = sorted(every_precision.folder.glob("*.onnx"))
    assert len(paths) == 5 * len(PRECISIONS)
    for path in paths:
        model = onnx.load(path)
        assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 20)}, path.name
        assert {node.domain for node in model.graph.node} == {""}
        assert model.producer_name == "tcl"
        content = path.read_bytes()
        assert b".py" not in content and b"site-packages" not in content and b"/tmp" not in content
        assert str(Path(__file__).parents[3]).encode() not in content


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metadata_names_the_model(every_precision: Bundle, precision: str) -> None:
    path = every_precision.graph_file("image_encoder", precision)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["tcl.model_hash"] == every_precision.model_hash
    assert "image_size" in metadata["tcl.preprocessing"]


def test_same_model_same_bytes_and_no_chatter(
    tiny_model: TCL, every_precision: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_onnx(tiny_model, tmp_path, PRECISIONS, calibration=calibrated(tiny_model))
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 5 * len(PRECISIONS)
    for path in paths:
        assert path.read_bytes() == (every_precision.folder / path.name).read_bytes(), path.name
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_half_precision_is_in_the_types_of_the_graph(every_precision: Bundle, precision: str, kind: int) -> None:
    graph = onnx.load(every_precision.graph_file("image_encoder", precision)).graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    assert types["visual_encoder.blocks.0.mlp.fc1.weight"] == kind
    assert types["visual_encoder.norm.weight"] == kind
    for name in ("vision_proj.weight", "vision_proj.bias", "pixel_mean", "pixel_std"):
        assert types[name] == TensorProto.FLOAT
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 5  # whose statistics are float32 unless an attribute says otherwise
    assert not any(attribute.name == "stash_type" for node in norms for attribute in node.attribute)
    assert not any(node.op_type == "Conv" for node in graph.node)


def test_int8_multiplies_in_integers_and_projects_in_float32(every_precision: Bundle) -> None:
    graph = onnx.load(every_precision.graph_file("text_encoder", "int8")).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") == 12  # six in each of two layers
    assert next(weight for weight in graph.initializer if weight.name == "text_proj.weight").data_type == 1
    assert every_precision.graphs["text_encoder"]["int8"]["quantisation"] == "dynamic"


def test_static_int8_where_there_is_something_to_calibrate_with(tiny_model: TCL, tmp_path: Path) -> None:
    samples = Samples(tiny_model.processor, ["scenes:val:0:1", "scenes:val:0:2"])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = export_onnx(
            tiny_model, tmp_path / name, ["int8"], calibration=calibration(TorchReference(tiny_model), samples)
        )
    assert {name: entry["int8"]["quantisation"] for name, entry in files.items()} == {
        "image_encoder": "static",
        "text_encoder": "dynamic",
        "image_tokens": "static",
        "image_key_values": "static",
        "matcher": "dynamic",
    }
    kinds = {node.op_type for node in onnx.load(tmp_path / "one" / "image_encoder.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds and "MatMulInteger" not in kinds
    for path in (tmp_path / "one").iterdir():
        assert path.suffix == ".onnx" and path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    checks = verify(tmp_path / "one", tiny_model, ["int8"], samples=samples)
    cosines = [check.min_cosine for check in checks if check.output == "image_embeds"]
    assert len(cosines) == 2 and all(cosine is not None and cosine > 0.98 for cosine in cosines)


def test_large_weights_go_to_a_file_of_their_own(
    tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "INLINE_LIMIT", 10_000)
    precisions = ["fp32", "fp16", "int8", "fp8"]
    files = export_onnx(tiny_model, tmp_path, precisions, matcher=False, calibration=calibrated(tiny_model))
    assert files["image_encoder"]["fp16"] == {"file": "image_encoder.fp16.onnx", "data": "image_encoder.fp16.onnx.data"}
    for precision in ("int8", "fp8"):
        assert files["image_encoder"][precision]["data"] == f"image_encoder.{precision}.onnx.data"
    assert (tmp_path / "image_encoder.onnx").stat().st_size < 40_000
    assert all(check.passed for check in verify(tmp_path, tiny_model, precisions, matcher=False, bounds=FLOAT8))


def test_layers_that_are_not_plain_are_scaled_and_normed(tmp_path: Path) -> None:
    """Layer scales, norms of queries and keys, and a norm ahead of the blocks, as other ViTs have."""
    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    model = make_tiny_model(
        image_encoder="vit_base_patch16_clip_224",
        image_encoder_args=shape | {"qk_norm": True, "init_values": 0.5},  # the second of them is a number
    )
    assert is_plain(model.visual_encoder)
    export_onnx(model, tmp_path, matcher=False)
    assert all(check.passed for check in verify(tmp_path, model, matcher=False))


def test_an_image_encoder_of_another_kind_is_traced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shape = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4}
    model = make_tiny_model(image_encoder="deit3_small_patch16_224", image_encoder_args=shape)
    assert not is_plain(model.visual_encoder)
    export_onnx(model, tmp_path, matcher=False)
    assert all(check.passed for check in verify(tmp_path, model, matcher=False))
    content = (tmp_path / "image_encoder.onnx").read_bytes()
    assert b".py" not in content and capfd.readouterr().err == ""
    with pytest.raises(UsageError, match="bf16: deit3_small_patch16_224 is traced"):
        export_onnx(model, tmp_path, ["bf16"])


def test_an_unsupported_layer_is_named(tiny_model: TCL, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model)
    layer = model.text_encoder.bert.encoder.layer[0]
    layer.intermediate.dense = torch.nn.utils.parametrizations.weight_norm(layer.intermediate.dense)  # type: ignore
    with pytest.raises(TclError, match=r"layer\.0\.intermediate\.dense: a layer of type ParametrizedLinear"):
        export_onnx(model, tmp_path)
