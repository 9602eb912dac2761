"""Verification passes on what was exported, and catches what it is there to catch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle import Bundle, build_bundle, read_bundle
from export.verify import Check, verify
from tcl.models.tcl import TCL


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def _failed(checks: list[Check]) -> list[tuple[str, str]]:
    return [(check.graph, check.subject) for check in checks if not check.passed]


def test_a_good_export_passes(bundle: Bundle) -> None:
    assert bundle.verified and not _failed(bundle.checks)
    subjects = [check.subject for check in bundle.checks]
    assert subjects == ["names", "axes", "shapes", "values"] * 2
    values = [check for check in bundle.checks if check.subject == "values"]
    assert [check.cases for check in values] == [3, 25 * 3 * 2]
    for check in values:
        assert check.max_abs_diff is not None and 0 < check.max_abs_diff <= 1e-5
        assert check.min_cosine is not None and check.min_cosine > 1 - 1e-6


def test_real_images_are_compared(bundle: Bundle, tiny_model: TCL) -> None:
    checks = verify(bundle.folder, tiny_model, images=["scenes:val:0:1", "scenes:val:0:2"])
    assert next(check for check in checks if check.subject == "values").cases == 5
    assert not _failed(checks)


def test_a_perturbed_weight_is_caught(copy: Path, tiny_model: TCL) -> None:
    path = copy / "image_encoder.onnx"
    graph = onnx.load(path)
    weight = next(
        tensor for tensor in graph.graph.initializer if "vision_proj.weight" in tensor.name or len(tensor.dims) == 2
    )
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)
    assert _failed(verify(copy, tiny_model)) == [("image_encoder", "values")]


def test_a_graph_that_ignores_its_mask_is_caught(copy: Path, tiny_model: TCL) -> None:
    path = copy / "text_encoder.onnx"
    graph = onnx.load(path)
    for node in graph.graph.node:
        for position, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[position] = "all_ones"
    zero, one = (numpy_helper.from_array(np.array(value), f"constant_{value}") for value in (0, 1))
    graph.graph.initializer.extend([zero, one])
    graph.graph.node.insert(0, onnx.helper.make_node("Mul", ["attention_mask", "constant_0"], ["all_zeros"]))
    graph.graph.node.insert(1, onnx.helper.make_node("Add", ["all_zeros", "constant_1"], ["all_ones"]))
    onnx.save(graph, path)
    checks = verify(copy, tiny_model)
    assert _failed(checks) == [("text_encoder", "values")]
    assert "padded" in next(check.detail for check in checks if not check.passed)


def test_a_fixed_batch_axis_is_caught(copy: Path, tiny_model: TCL) -> None:
    path = copy / "image_encoder.onnx"
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, path)
    assert _failed(verify(copy, tiny_model))[0] == ("image_encoder", "axes")


def test_a_renamed_output_and_a_broken_file_are_caught(copy: Path, tiny_model: TCL) -> None:
    graph = onnx.load(copy / "image_encoder.onnx")
    graph.graph.node.append(onnx.helper.make_node("Identity", ["image_embeds"], ["embedding"]))
    graph.graph.output[0].name = "embedding"
    onnx.save(graph, copy / "image_encoder.onnx")
    (copy / "text_encoder.onnx").write_bytes(b"not a graph")
    checks = verify(copy, tiny_model)
    assert _failed(checks) == [("image_encoder", "names"), ("text_encoder", "names")]
    assert "cannot open" in checks[-1].detail


def test_values_that_are_not_finite_are_caught(copy: Path, tiny_model: TCL) -> None:
    path = copy / "image_encoder.onnx"
    graph = onnx.load(path)
    weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.dims))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)
    assert _failed(verify(copy, tiny_model)) == [("image_encoder", "values")]


def test_a_failed_verification_keeps_the_bundle_unverified(
    tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.onnx.export_onnx", lambda model, folder: None)
    monkeypatch.setattr("export.bundle.verify", lambda *args: [Check("image_encoder", "values", False, "off")])
    assert not build_bundle(tiny_model, tmp_path / "bundle").verified
    assert not read_bundle(tmp_path / "bundle").verified
