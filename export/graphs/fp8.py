"""A float16 graph whose products with weights take 8-bit floats, in the type E4M3 with standard operators.

Both factors pass through QuantizeLinear and DequantizeLinear, which TensorRT makes one product of 8-bit floats of;
weights are stored as such. There is one scale for each tensor: a float keeps its relative precision over 15 binary
orders of magnitude, so that scales of single channels would gain little.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.graphs.int8 import CalibrationReader, Feeds, weight_products
from tcl.encoders.graphs import ELEMENT_TYPES
from tcl.machine.quiet import quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 448.0  # of E4M3
SMALLEST_SCALE = 2.0**-14  # smaller ones lose bits of their own in float16
FLOAT16_LAYERS = ("visual_encoder.patch_embed",)  # beside those that int8 leaves out: no encoder layer, and cheap
_ZERO = "zero float8"


def quantise_float8(source: Path, target: Path, calibration: Feeds) -> str:
    """Write the graph in `source` with the products of its encoder layers in 8-bit floats.

    Args:
        source: a float16 graph.
        target: the file to write.
        calibration: inputs that are typical, which fix the range of every activation; at least one.

    Returns:
        `static`.
    """
    import onnx

    external = source.with_name(source.name + ".data").exists()
    largest = _largest_values(source, calibration, external)
    model = onnx.load(source)
    graph = model.graph
    products = {node.name for node in weight_products(model) if not node.name.startswith(FLOAT16_LAYERS)}
    weights = {weight.name: weight for weight in graph.initializer}
    added = {_ZERO: onnx.TensorProto(name=_ZERO, data_type=ELEMENT_TYPES["float8_e4m3fn"], raw_data=b"\0")}
    nodes: list[Any] = []
    replaced: dict[str, str] = {}  # factor of a product -> the same, once quantised
    for node in graph.node:
        for place, name in enumerate(node.input if node.name in products else ()):
            if name not in replaced:
                if name in weights:
                    scale, stored = _stored(name, onnx.numpy_helper.to_array(weights[name]))
                    added[stored.name] = stored
                else:
                    scale = scale_of(largest[name])
                added[f"{name} scale"] = onnx.numpy_helper.from_array(scale, f"{name} scale")
                nodes += _pair(name, quantised=name in weights)
                replaced[name] = f"{name} dequantised"
            node.input[place] = replaced[name]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [weight for name, weight in weights.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added.values()])
    onnx.save(model, target, save_as_external_data=external, location=f"{target.name}.data")
    return "static"


def scale_of(largest: float) -> NDArray[np.float16]:
    """The scale, without axes, that brings values of up to `largest` into the range of E4M3."""
    return np.array(max(largest / LARGEST, SMALLEST_SCALE), np.float16)


def to_float8(values: NDArray[Any], scale: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The bytes of E4M3 numbers: the nearest to `values / scale`, ties to even; what is beyond the range, its end."""
    import torch

    scaled = np.clip(values.astype(np.float32) / scale.astype(np.float32), -LARGEST, LARGEST)
    found: NDArray[np.uint8] = torch.from_numpy(scaled).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return found


def _stored(name: str, values: NDArray[Any]) -> tuple[NDArray[np.float16], Any]:
    """The scale of a weight, and the weight as 8-bit floats."""
    from onnx import TensorProto

    scale = scale_of(float(np.abs(values).max(initial=0)))
    content = to_float8(values, scale).tobytes()
    kind = ELEMENT_TYPES["float8_e4m3fn"]
    return scale, TensorProto(name=f"{name} quantised", data_type=kind, dims=values.shape, raw_data=content)


def _pair(name: str, quantised: bool) -> Iterator[Any]:
    """The nodes that make `NAME dequantised` of `NAME`; of a weight, which is stored quantised, only the second."""
    from onnx.helper import make_node

    low, back = f"{name} quantised", f"{name} dequantised"
    if not quantised:
        yield make_node("QuantizeLinear", [name, f"{name} scale", _ZERO], [low], name=low)
    yield make_node("DequantizeLinear", [low, f"{name} scale", _ZERO], [back], name=back)


def _largest_values(source: Path, calibration: Feeds, external: bool) -> dict[str, float]:
    """The largest |value| of what goes into and comes out of the products, over all calibration inputs."""
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory(dir=source.parent, prefix=".fp8-") as folder, quiet():
        calibrator = create_calibrator(  # as int8 does
            source,
            ["MatMul"],
            str(Path(folder) / "observed.onnx"),
            use_external_data_format=external,
            extra_options={"symmetric": True},
        )
        calibrator.collect_data(CalibrationReader(calibration))
        ranges = calibrator.compute_data()
    return {name: float(np.max(ranges[name].range_value[1])) for name in ranges.keys()}  # noqa: SIM118
