"""Image encoders that are not written down layer by layer: torch's own exporter traces them into the graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from export.graphs.network import Network
from tcl.encoders.graphs import OPSET
from tcl.errors import MissingExtraError, TclError, reason_of
from tcl.machine.quiet import quiet

if TYPE_CHECKING:
    from tcl.models.vision import VisionEncoder

EXAMPLE_BATCH = 2  # never 1, which tracing would take for a constant
PREFIX = "visual_encoder/"


def trace(net: Network, encoder: VisionEncoder, x: str, image_size: tuple[int, int]) -> str:
    """Token states [B, T, D] of normalised pixels [B, 3, H, W] `x`, by nodes that torch's exporter finds.

    Raises:
        MissingExtraError: the exporter's packages are not installed.
        TclError: it cannot export this encoder.
    """
    import torch

    module = _tokens_of(copy.deepcopy(encoder)).eval().to(getattr(torch, net.dtype))
    pixels = torch.zeros(EXAMPLE_BATCH, 3, *image_size, dtype=getattr(torch, net.dtype))
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                module,
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                external_data=False,
                verbose=False,
            )
            assert program is not None  # it writes no file itself
            traced: Any = program.model_proto
    except ImportError as error:
        raise MissingExtraError("onnxscript", "onnx") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise TclError(
            f"image encoder: torch cannot export this model: {reason_of(error)}", hint="see --debug"
        ) from error
    opsets = {entry.domain: entry.version for entry in traced.opset_import}
    if opsets != {"": OPSET}:
        raise TclError(f"image encoder: the exporter wrote operator sets {opsets} instead of {OPSET}")
    return _inline(net, traced.graph, x)


def _tokens_of(encoder: VisionEncoder) -> Any:
    from torch import Tensor, nn

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.encoder.tokens(pixel_values)

    return Tokens()


def _inline(net: Network, graph: Any, x: str) -> str:
    """Add the nodes and weights of `graph` under names of their own; without traces, which hold local paths."""
    names = {graph.input[0].name: x}
    for weight in graph.initializer:
        names[weight.name] = PREFIX + weight.name
        weight.name = PREFIX + weight.name
        del weight.metadata_props[:]
        weight.doc_string = ""
        net.weights[weight.name] = weight
    for node in graph.node:
        node.input[:] = [names[name] if name else "" for name in node.input]
        for place, name in enumerate(node.output):
            names[name] = PREFIX + name if name else ""
            node.output[place] = names[name]
        node.name = PREFIX + node.name
        del node.metadata_props[:]
        node.doc_string = ""
        net.nodes.append(node)
    return names[graph.output[0].name]
