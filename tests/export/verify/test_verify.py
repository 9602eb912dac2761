"""Verification passes on what was exported, and catches what it is there to catch."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle import build_bundle
from export.graphs.write import export_onnx
from export.verify.cases import Samples
from export.verify.checks import Bounds, Check
from export.verify.onnx import verify
from tcl.encoders.bundle import Bundle, read_bundle
from tcl.encoders.graphs import PRECISIONS
from tcl.models.heads import Task
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tests.bundles import FLOAT8, calibrated


def _failed(checks: list[Check]) -> list[tuple[str, str]]:
    return [(check.graph, check.subject) for check in checks if not check.passed]


def _edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def _weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(weight for weight in model.graph.initializer if weight.name == name)


def test_a_good_export_passes(bundle: Bundle) -> None:
    assert bundle.verified and not _failed(bundle.checks)
    subjects = [check.subject for check in bundle.checks]
    whole = ["names", "axes", "shapes", "values"]
    assert subjects == [*whole, *whole, *whole, "values", *whole, *whole]
    values = {(check.graph, check.output): check for check in bundle.checks if check.subject == "values"}
    assert {check.cases for check in values.values()} == {4, 25 * 3 * 2 + 1, 25 * 2 + 1}
    for (_, output), check in values.items():
        bound = 1e-4 if output == "itm_logits" else 1e-5
        assert check.max_abs_diff is not None and check.max_abs_diff <= bound
        assert check.min_cosine is None if output == "itm_logits" else check.min_cosine > 1 - 1e-6
        assert (check.neighbours is not None) == output.endswith("_embeds")
    assert values["text_encoder", "text_embeds"].neighbours > 0.99  # type: ignore[operator]


def test_every_precision_is_verified_within_its_bound(every_precision: Bundle) -> None:
    assert every_precision.verified
    for precision, bound in (("fp16", 0.9995), ("bf16", 0.998), ("int8", 0.99), ("fp8", 0.97)):
        values = [check for check in every_precision.checks if check.precision == precision and check.min_cosine]
        assert len(values) == 5
        for check in values:
            assert bound <= check.min_cosine <= check.mean_cosine < 1  # type: ignore[operator]
            assert check.max_abs_diff > 1e-5, "rounding leaves a trace"  # type: ignore[operator]
            assert check.bound == f"cosine {bound:g}"
    assert "rounded to bf16" in next(check.runtime for check in every_precision.checks if check.precision == "bf16"
                                     and check.subject == "values")  # fmt: skip


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "text_assignment", "vqa"])
def test_heads_of_fine_tuned_models(fine_tuned: Callable[[Task], TaskModel], task: Task, tmp_path: Path) -> None:
    model = fine_tuned(task)
    matcher = task == "nlvr2"  # whose fusion layers are doubled
    export_onnx(model, tmp_path, PRECISIONS, matcher=matcher, calibration=calibrated(model))
    checks = verify(tmp_path, model, PRECISIONS, matcher=matcher, bounds=FLOAT8)
    assert not _failed(checks)
    own = {check.precision: check for check in checks if check.graph == task and check.subject == "values"}
    assert set(own) == set(PRECISIONS) and own["fp32"].max_abs_diff <= 1e-4  # type: ignore[operator]
    assert own["fp32"].cases == 51
    graph = onnx.load(tmp_path / f"{task}.onnx").graph
    # The images of a row come in two places, which the model does not treat alike.
    assert len(graph.input[0].type.tensor_type.shape.dim) == (5 if task in ("nlvr2", "text_assignment") else 4)


def test_real_inputs_are_compared(bundle: Bundle, tiny_model: TCL) -> None:
    samples = Samples(tiny_model.processor, ["scenes:val:0:1", "scenes:val:0:2"], [f"caption {n}" for n in range(18)])
    checks = verify(bundle.folder, tiny_model, samples=samples)
    cases = {check.graph: check.cases for check in checks if check.subject == "values"}
    assert (cases["image_encoder"], cases["text_encoder"], cases["matcher"]) == (5, 153, 53)
    assert not _failed(checks)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_swapped_weights_are_caught(
    every_precision: Bundle, tiny_model: TCL, tmp_path: Path, precision: str
) -> None:
    """Not by a cosine near 1 alone: they are the keys and values of one head."""
    shutil.copytree(every_precision.folder, tmp_path / "copy")
    path = tmp_path / "copy" / every_precision.graphs["text_encoder"][precision]["file"]

    def swap(model: onnx.ModelProto) -> None:
        suffix = {"int8": "_quantized", "fp8": " quantised"}.get(precision, "")
        names = [f"text_encoder.bert.encoder.layer.0.attention.self.{part}.weight{suffix}" for part in ("key", "value")]
        key, value = (_weight(model, name) for name in names)
        key.name, value.name = value.name, key.name

    _edit(path, swap)
    checks = verify(tmp_path / "copy", tiny_model, [precision], matcher=False, bounds=FLOAT8)
    assert _failed(checks) == [("text_encoder", "values")]


@pytest.mark.parametrize("graph", ["text_encoder", "matcher"])
def test_a_graph_that_ignores_its_mask_is_caught(copied: Path, tiny_model: TCL, graph: str) -> None:
    def ignore(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name == "attention_mask":
                    node.input[position] = "all_ones"
        zero, one = (numpy_helper.from_array(np.array(value), f"constant_{value}") for value in (0, 1))
        model.graph.initializer.extend([zero, one])
        model.graph.node.insert(0, onnx.helper.make_node("Mul", ["attention_mask", "constant_0"], ["all_zeros"]))
        model.graph.node.insert(1, onnx.helper.make_node("Add", ["all_zeros", "constant_1"], ["all_ones"]))

    _edit(copied / f"{graph}.onnx", ignore)
    checks = verify(copied, tiny_model)
    assert _failed(checks) == [(graph, "values")]
    assert "padded" in next(check.detail for check in checks if not check.passed)


@pytest.mark.parametrize(("precision", "passes"), [("fp16", False), ("bf16", True)])
def test_an_overflow_in_half_precision_is_caught(tiny_model: TCL, tmp_path: Path, precision: str, passes: bool) -> None:
    """Weights that float16 holds, and activations that it does not; ONNX Runtime on a CPU would not notice."""
    model = copy.deepcopy(tiny_model)
    mlp = model.visual_encoder.blocks[0].mlp  # type: ignore[index]
    mlp.fc1.weight.data.mul_(3e4)
    mlp.fc2.weight.data.div_(3e4)
    assert mlp.fc1.weight.abs().max() < 65504
    export_onnx(model, tmp_path, [precision], matcher=False)
    checks = verify(tmp_path, model, [precision], matcher=False)
    assert _failed(checks) == ([] if passes else [("image_encoder", "values")])
    if not passes:
        assert "is not finite" in next(check.detail for check in checks if not check.passed)


def test_a_fixed_batch_axis_is_caught(copied: Path, tiny_model: TCL) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    _edit(copied / "image_encoder.onnx", fix)
    assert _failed(verify(copied, tiny_model))[0] == ("image_encoder", "axes")


def test_a_graph_that_loses_rows_is_caught(copied: Path, tiny_model: TCL) -> None:
    def lose(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
        zero = next(weight.name for weight in model.graph.initializer if weight.name == "integers 0")
        model.graph.node[0].input[0] = "at most two"
        model.graph.node.insert(0, onnx.helper.make_node("Slice", ["pixel_values", zero, "two", zero], ["at most two"]))

    _edit(copied / "image_encoder.onnx", lose)
    checks = verify(copied, tiny_model, matcher=False)
    assert _failed(checks) == [("image_encoder", "shapes")]
    assert "batch 7" in next(check.detail for check in checks if not check.passed)


def test_a_renamed_output_and_a_broken_file_are_caught(copied: Path, tiny_model: TCL) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Identity", ["image_embeds"], ["embedding"]))
        model.graph.output[0].name = "embedding"

    _edit(copied / "image_encoder.onnx", rename)
    (copied / "text_encoder.onnx").write_bytes(b"not a graph")
    (copied / "matcher.onnx").unlink()
    checks = verify(copied, tiny_model)
    assert _failed(checks) == [("image_encoder", "names"), ("text_encoder", "names"), ("matcher", "names")]
    assert "cannot be opened" in checks[-1].detail


def test_values_that_are_not_finite_are_caught(copied: Path, tiny_model: TCL) -> None:
    def poison(model: onnx.ModelProto) -> None:
        weight = _weight(model, "vision_proj.weight")
        values = numpy_helper.to_array(weight).copy()
        values.flat[0] = np.nan
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    _edit(copied / "image_encoder.onnx", poison)
    checks = verify(copied, tiny_model)
    assert _failed(checks) == [("image_encoder", "values")]
    assert json.dumps(checks[3].to_json(), allow_nan=False)


def test_a_failed_verification_keeps_the_bundle_unverified(tiny_model: TCL, tmp_path: Path) -> None:
    bounds = Bounds({"fp32": 1e-12})
    made = build_bundle(tiny_model, tmp_path / "bundle", matcher=False, bounds=bounds)
    assert not made.verified and not read_bundle(tmp_path / "bundle").verified
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert manifest["verification"]["moved"] == ["fp32"] and manifest["verification"]["bounds"]["fp32"] == 1e-12
    assert manifest["graphs"]["text_encoder"]["precisions"]["fp32"]["verified"] is False
