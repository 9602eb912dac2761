"""A half-precision graph computes in float32 and rounds each result to its type: against torch, by single operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.verify.rounding import write_rounded
from tcl.encoders.sessions import open_session

KINDS = {"float16": (TensorProto.FLOAT16, torch.float16), "bfloat16": (TensorProto.BFLOAT16, torch.bfloat16)}


def _weight(name: str, values: torch.Tensor, kind: int) -> onnx.TensorProto:
    """`values` are in the type itself."""
    return helper.make_tensor(name, kind, values.shape, values.view(torch.int16).numpy().tobytes(), raw=True)


def _save(path: Path, nodes: list[Any], inputs: dict[str, int], outputs: dict[str, int], weights: list[Any]) -> Path:
    """A graph whose values have one or two axes."""
    infos = [
        [helper.make_tensor_value_info(name, kind, None) for name, kind in ports.items()] for ports in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "graph", *infos, initializer=weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def _run(path: Path, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    write_rounded(path, path.with_name("rounded.onnx"))
    session = open_session(path.with_name("rounded.onnx"), 1, optimise=False)
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("dtype", KINDS)
def test_each_operator_rounds_its_result(tmp_path: Path, dtype: str) -> None:
    """Whole numbers whose products and sums are exact in float32, so that only the rounding is to be seen."""
    kind, half = KINDS[dtype]
    draw = torch.Generator().manual_seed(0)
    factor = torch.randint(-60, 60, (4, 6), generator=draw).to(half)
    offset = torch.randint(-2000, 2000, (6,), generator=draw).float()
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("MatMul", ["h", "factor"], ["product"]),
        helper.make_node("Add", ["product", "product"], ["twice"]),  # one value in two places
        helper.make_node("Mul", ["product", "twice"], ["square"]),
        helper.make_node("Split", ["square"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Clip", ["left", "", "most"], ["clipped"]),  # an input that is left out
        helper.make_node("Concat", ["clipped", "right"], ["whole"], axis=1),
        helper.make_node("Shape", ["whole"], ["shape"]),
        helper.make_node("Cast", ["whole"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "offset"], ["y"]),  # in float32: not rounded
    ]
    most = torch.tensor(30000).to(half)
    weights = [
        _weight("factor", factor, kind),
        _weight("most", most, kind),
        onnx.numpy_helper.from_array(offset.numpy(), "offset"),
    ]
    outputs = {"y": TensorProto.FLOAT, "shape": TensorProto.INT64}
    path = _save(tmp_path / "graph.onnx", nodes, {"x": TensorProto.FLOAT}, outputs, weights)
    x = torch.randint(-3000, 3000, (5, 4), generator=draw).float() / 64

    product = (x.to(half).float() @ factor.float()).to(half).float()
    square = (product * (product + product).to(half).float()).to(half).float()
    square[:, :3].clamp_(max=most.float())
    exact = (x @ factor.float()) ** 2 * 2
    assert (square != exact).float().mean() > 0.9 and square.isinf().any() == (dtype == "float16")

    found = _run(path, {"x": x.numpy()})
    np.testing.assert_array_equal(found["y"], (square + offset).numpy())
    assert found["shape"].tolist() == [5, 6]


def test_inputs_and_outputs_keep_their_type(tmp_path: Path) -> None:
    """All that an operator has."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Split", ["square"], ["y", "z"], axis=1, num_outputs=2),
        helper.make_node("Identity", ["count"], ["same"]),
    ]
    half, whole = TensorProto.FLOAT16, TensorProto.INT64
    inputs, outputs = {"x": half, "count": whole}, {"y": half, "z": half, "same": whole}
    path = _save(tmp_path / "graph.onnx", nodes, inputs, outputs, [])
    x, count = np.array([[3.14159, 300, 1e-4, 7]], np.float16), np.arange(3)
    found = _run(path, {"x": x, "count": count})
    assert found["y"].dtype == found["z"].dtype == np.float16 and np.isinf(found["y"]).tolist() == [[False, True]]
    with np.errstate(over="ignore"):
        expected = (x.astype(np.float32) ** 2).astype(np.float16)
    np.testing.assert_array_equal(np.hstack([found["y"], found["z"]]), expected)
    np.testing.assert_array_equal(found["same"], count)


def test_weights_stand_beside_the_graph(tmp_path: Path) -> None:
    """A model in one file can be no larger than 2 GB."""
    weight = torch.randint(-8, 8, (64, 64), generator=torch.Generator().manual_seed(0)).half()
    path = _save(
        tmp_path / "graph.onnx",
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        {"x": TensorProto.FLOAT16},
        {"y": TensorProto.FLOAT16},
        [_weight("weight", weight, TensorProto.FLOAT16)],
    )
    x = np.eye(64, dtype=np.float16)
    np.testing.assert_array_equal(_run(path, {"x": x})["y"], weight.numpy())
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes.keys() == {"graph.onnx", "rounded.onnx", "rounded.onnx.data"}
    assert sizes["rounded.onnx"] < 2000 < sizes["rounded.onnx.data"]
