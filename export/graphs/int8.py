"""A float32 graph whose products with weights are done in 8-bit integers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl.encoders.graphs import OPSET
from tcl.machine.quiet import quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Feeds = Sequence[dict[str, "NDArray[np.generic]"]]

FLOAT_LAYERS = ("vision_proj", "text_proj", "itm_head", "cls_head", "ta_head")
"""Layers that are not quantised: they cost next to nothing, and every vector passes through them last."""


def quantise(source: Path, target: Path, calibration: Feeds = ()) -> str:
    """Write the graph in `source` with int8 weights.

    Args:
        source: a float32 graph.
        target: the file to write.
        calibration: inputs that are typical. With them the range of every activation is fixed, by explicit
            QuantizeLinear and DequantizeLinear, which TensorRT takes too; without, it is found anew for every batch.

    Returns:
        `static` or `dynamic`.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8-") as folder, quiet():
        plain, made = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        model = onnx.load(source)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        chosen = {node.name for node in weight_products(model)}
        kept = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in chosen]
        external = source.with_name(source.name + ".data").exists()
        onnx.save(model, plain, save_as_external_data=external, location="plain.data")
        del model
        settings: dict[str, Any] = {
            "op_types_to_quantize": ["MatMul"],
            "nodes_to_exclude": kept,
            "weight_type": QuantType.QInt8,
            "use_external_data_format": external,
        }
        if calibration:
            quantize_static(
                plain,
                made,
                CalibrationReader(calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
                **settings,
            )
        else:
            quantize_dynamic(plain, made, **settings)
        model = onnx.load(made)
        # The quantiser names itself and its own operators in every file, whether they are used or not.
        del model.opset_import[:], model.graph.value_info[:], model.metadata_props[:]
        model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
        model.producer_name, model.producer_version, model.domain = "tcl", "", ""
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, target, save_as_external_data=external, location=f"{target.name}.data")
    return "static" if calibration else "dynamic"


def weight_products(model: Any) -> list[Any]:
    """The nodes of an ONNX model that are quantised: products with weights, but for `FLOAT_LAYERS`."""
    weights = {weight.name for weight in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and not node.name.startswith(FLOAT_LAYERS)
    ]


class CalibrationReader:
    """Hands out the calibration inputs, one call each, as ONNX Runtime's quantisation wants them."""

    def __init__(self, feeds: Feeds) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """The next ones; None after the last."""
        return next(self._left, None)
