"""A half-precision graph as a GPU computes it, on a CPU: each operator in float32, its result rounded.

ONNX Runtime has no bfloat16 kernels for the CPU, and runs float16 there in float32 without rounding in between, so that
an overflow goes unseen. Here every operator of the file gets its inputs as float32, and its result is rounded to the
type that the file says, which is what tensor cores do. Weights, operators and connections are those of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tcl.encoders.graphs import ELEMENT_TYPES

HALF = (ELEMENT_TYPES["float16"], ELEMENT_TYPES["bfloat16"])
FLOAT = ELEMENT_TYPES["float32"]


def write_rounded(source: Path, target: Path) -> None:
    """Write the graph in `source` as one whose operators are float32 and whose results are rounded.

    To be run without graph optimisation, which would take the rounding out.
    """
    import onnx

    model = onnx.load(source)
    halves = _half_values(model)
    nodes: list[Any] = []
    wide: dict[str, str] = {}  # half value -> the same in float32

    def widened(name: str) -> str:
        if name not in wide:
            wide[name] = f"{name} float32"
            nodes.append(onnx.helper.make_node("Cast", [name], [wide[name]], to=FLOAT))
        return wide[name]

    for node in list(model.graph.node):
        for place, name in enumerate(node.input):
            if name in halves:
                node.input[place] = widened(name)
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in halves:
                node.output[place] = f"{name} exact"
                nodes.append(onnx.helper.make_node("Cast", [f"{name} exact"], [name], to=halves[name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")


def _half_values(model: Any) -> dict[str, int]:
    """Names of values in a half type, with the type."""
    from onnx import ModelProto, helper, shape_inference

    # Without the weights themselves: inference serialises the model, which 2 GB put an end to.
    weights = [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in model.graph.initializer]
    slim = ModelProto(opset_import=model.opset_import)
    slim.graph.node.extend(model.graph.node)
    slim.graph.input.extend([*model.graph.input, *weights])
    slim.graph.output.extend(model.graph.output)
    graph = shape_inference.infer_shapes(slim).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return {name: kind for name, kind in types.items() if kind in HALF}
