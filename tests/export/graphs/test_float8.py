"""Graphs in 8-bit floats: their numbers against a plain formula, what is quantised and what is not, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.bundle import build_bundle
from export.graphs.build import sizes_of
from export.graphs.fp8 import scale_of, to_float8
from export.graphs.write import export_onnx
from export.verify.cases import Samples, calibration
from export.verify.references import TorchReference
from export.verify.rounding import write_rounded
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import graphs
from tcl.encoders.sessions import open_session
from tcl.errors import UsageError
from tcl.models.tcl import TCL
from tests.bundles import SCENES
from tests.conftest import CAPTIONS

CODES = np.arange(256, dtype=np.uint8)


def _decoded(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """E4M3 as it is defined: a sign, 4 bits of exponent with a bias of 7, 3 bits of fraction; no infinity, one NaN."""
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = (codes >> 3) & 0xF, codes & 0x7
    size = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent.astype(float) - 7))
    return np.where((codes & 0x7F) == 0x7F, np.nan, sign * size)


def test_the_nearest_number_is_taken() -> None:
    numbers = _decoded(CODES)
    assert np.nanmax(numbers) == 448 and np.isnan(numbers).sum() == 2
    values = np.random.default_rng(0).standard_normal(2000) * 10.0 ** np.random.default_rng(1).uniform(-4, 2.6, 2000)
    found = _decoded(to_float8(values, np.float16(1)))
    distances = np.abs(values[:, None] - numbers[None])
    np.testing.assert_array_equal(np.abs(found - values), np.nanmin(distances, axis=1))


def test_ties_go_to_even_and_the_range_ends_at_448() -> None:
    values = np.array([17.0, 19.0, 0.0009765625, 448, 463, 1e30, -1e30, 0])
    assert _decoded(to_float8(values, np.float16(1))).tolist() == [16, 20, 0, 448, 448, 448, -448, 0]
    assert _decoded(to_float8(values[:1] / 1024, np.float16(1 / 1024))).tolist() == [16]


def test_scales() -> None:
    assert scale_of(448) == 1 and scale_of(896) == 2 and scale_of(1).dtype == np.float16
    assert scale_of(1) == np.float16(1 / 448)
    assert scale_of(0) == scale_of(1e-9) == np.float16(2**-14)  # whose inverse is finite


def _graph(bundle: Bundle, name: str) -> onnx.GraphProto:
    return onnx.load(bundle.graph_file(name, "fp8")).graph


def test_products_of_the_layers_take_8_bit_floats(every_precision: Bundle, tiny_model: TCL) -> None:
    graph = _graph(every_precision, "image_encoder")
    weights = {weight.name: weight for weight in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    quantised = set()
    for node in graph.node:
        factors = [made_by.get(name) for name in node.input]
        if node.op_type != "MatMul" or any(each is None or each.op_type != "DequantizeLinear" for each in factors):
            continue
        left, right = factors
        assert made_by[left.input[0]].op_type == "QuantizeLinear"
        assert weights[right.input[0]].data_type == TensorProto.FLOAT8E4M3FN
        assert weights[right.input[1]].data_type == TensorProto.FLOAT16
        quantised.add(node.name)
    layers = [f"visual_encoder.blocks.{number}" for number in (0, 1)]
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert quantised == {f"{layer}.{part}" for layer in layers for part in parts}
    assert weights["visual_encoder.patch_embed.proj.weight"].data_type == TensorProto.FLOAT16
    assert weights["vision_proj.weight"].data_type == TensorProto.FLOAT
    assert "visual_encoder.blocks.0.mlp.fc1.weight" not in weights  # not stored twice
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 8
    assert every_precision.graphs["image_encoder"]["fp8"] == {
        "file": "image_encoder.fp8.onnx",
        "quantisation": "static",
    }


def test_weights_are_those_of_the_model(every_precision: Bundle, tiny_model: TCL) -> None:
    weights = {weight.name: weight for weight in _graph(every_precision, "text_encoder").initializer}
    name = "text_encoder.bert.encoder.layer.0.intermediate.dense.weight"
    expected = tiny_model.get_parameter(name).detach().numpy().T.astype(np.float16)
    scale = numpy_helper.to_array(weights[f"{name} scale"])
    assert scale == np.float16(np.abs(expected).max() / 448)
    stored = _decoded(np.frombuffer(weights[f"{name} quantised"].raw_data, np.uint8)).reshape(expected.shape)
    assert np.abs(stored).max() == 448
    error = np.abs(stored * float(scale) - expected)
    assert (error <= np.maximum(np.abs(expected) / 16, float(scale) * 2.0**-10) * 1.001).all()


def test_scales_of_activations_are_their_largest_values(every_precision: Bundle, tiny_model: TCL) -> None:
    """On the images given, and the random ones that go with them."""
    graph = next(graph for graph in graphs(sizes_of(tiny_model)) if graph.name == "image_encoder")
    samples = Samples(tiny_model.processor, SCENES, CAPTIONS)
    feeds = calibration(TorchReference(tiny_model), samples)(graph, "fp8")
    assert sum(len(feed["pixel_values"]) for feed in feeds) == len(SCENES) + 32
    seen = []
    layer = tiny_model.visual_encoder.blocks[0].mlp.fc1  # type: ignore[index]
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs().max().item()))
    with torch.inference_mode():
        for feed in feeds:
            tiny_model.encode_image(feed["pixel_values"])
    hook.remove()
    made = _graph(every_precision, "image_encoder")
    product = next(node for node in made.node if node.name == "visual_encoder.blocks.0.mlp.fc1")
    back = next(node for node in made.node if node.output[0] == product.input[0])
    scale = numpy_helper.to_array(next(weight for weight in made.initializer if weight.name == back.input[1]))
    assert float(scale) == pytest.approx(max(seen) / 448, rel=2e-3)


def test_what_verification_runs_rounds_as_defined(every_precision: Bundle, tiny_model: TCL, tmp_path: Path) -> None:
    path = tmp_path / "rounded.onnx"
    write_rounded(every_precision.graph_file("image_key_values", "fp8"), path)
    tokens = np.random.default_rng(0).standard_normal((2, 17, 32), np.float32)
    (found,) = open_session(path, 1, optimise=False).run(["image_key_values"], {"image_tokens": tokens})
    layer = tiny_model.text_encoder.bert.fusion_layers()[0].crossattention.self.key  # type: ignore[union-attr]
    made = _graph(every_precision, "image_key_values")
    weights = {weight.name: weight for weight in made.initializer}
    product = next(node for node in made.node if node.op_type == "MatMul")
    scales = [
        numpy_helper.to_array(weights[next(node.input[1] for node in made.node if node.output[0] == name)])
        for name in product.input
    ]
    factors = [tokens.astype(np.float16), layer.weight.detach().numpy().T.astype(np.float16)]
    low = [
        (_decoded(to_float8(factor, scale)) * float(scale)).astype(np.float16).astype(np.float32)
        for factor, scale in zip(factors, scales, strict=True)
    ]
    exact = (low[0] @ low[1]).astype(np.float16) + layer.bias.detach().numpy().astype(np.float16)
    keys = found[:, 0, 0].transpose(0, 2, 1, 3).reshape(exact.shape)
    np.testing.assert_allclose(keys.astype(np.float32), exact.astype(np.float32), atol=4e-3)


def test_no_real_inputs(tiny_model: TCL, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp8: image_encoder finds its ranges on real images and texts") as caught:
        export_onnx(tiny_model, tmp_path, ["fp8"])
    assert "--calibrate IMAGES --calibrate-texts TEXTS" in str(caught.value.hint)
    with pytest.raises(UsageError, match="fp8: text_encoder finds its ranges"):
        build_bundle(tiny_model, tmp_path / "bundle", ["fp8"], images=SCENES)
    assert not (tmp_path / "bundle").exists()


def test_alone_it_leaves_no_other_precision_behind(tiny_model: TCL, tmp_path: Path) -> None:
    bundle = build_bundle(
        tiny_model, tmp_path / "bundle", ["fp8"], matcher=False, check=False, images=SCENES, texts=CAPTIONS
    )
    assert sorted(path.name for path in bundle.folder.glob("*.onnx")) == [
        "image_encoder.fp8.onnx",
        "text_encoder.fp8.onnx",
    ]
    readme = (bundle.folder / "README.md").read_text()
    assert "```python" not in readme and "--model THIS_FOLDER --backend trt\n" in readme
