"""How many operations the matrix products of a graph take, counted while it runs once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

COUNTED = ("fp32", "fp16")
"""Precisions whose products are MatMul, Gemm and Conv; those of int8 are other operators and as many."""


def graph_flops(folder: Path, name: str, precision: str, feed: Mapping[str, NDArray[Any]]) -> float | None:
    """Operations of a graph of a bundle for one batch: twice the multiplications.

    Args:
        folder: the bundle.
        name: of the graph.
        precision: of the file; one that cannot be counted is counted in another.
        feed: inputs.

    Returns:
        None where no graph can be counted, or `onnx` is not installed.
    """
    from tcl.encoders.bundle import read_bundle

    bundle = read_bundle(folder)
    choice = next((one for one in (precision, *COUNTED) if one in COUNTED and one in bundle.precisions), None)
    if find_spec("onnx") is None or choice is None or bundle.graphs[name][choice].get("data"):
        return None
    import onnx
    import onnxruntime

    model = onnx.load(bundle.graph_file(name, choice))
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    wanted = {side for node in products for side in (node.input[0], node.output[0])} - set(weights)
    present = {port.name for port in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=side) for side in sorted(wanted - present))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    found = zip(names, session.run(names, dict(feed)), strict=True)
    shapes = {side: list(array.shape) for side, array in found} | weights
    shapes |= {port: list(array.shape) for port, array in feed.items()}
    total = 0
    for node in products:
        taken = prod(shapes[node.input[1]][1:]) if node.op_type == "Conv" else shapes[node.input[0]][-1]
        total += 2 * prod(shapes[node.output[0]]) * taken
    return float(total)
