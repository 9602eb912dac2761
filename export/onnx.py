"""TCL to ONNX: an image graph and a text graph with dynamic batch and sequence axes. Verification is `verify.py`'s."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.formats import MAX_BATCH, OPSET, Graph, graphs
from tcl.errors import TclError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tcl.models.tcl import TCL

# Never 1, which tracing would take for a constant, and different from each other and from any width.
EXAMPLE_BATCH = 2
EXAMPLE_LENGTH = 7


def export_onnx(model: TCL, folder: Path) -> list[Path]:
    """Write `image_encoder.onnx` and `text_encoder.onnx`; the same model gives the same bytes.

    Args:
        model: on the CPU, in evaluation mode.
        folder: exists.

    Returns:
        The files written.

    Raises:
        TclError: the exporter failed, or wrote something else than was asked for.
    """
    import torch

    from export.wrappers import ImageEncoder, TextEncoder

    image, text = graphs(model.processor.image_size)
    positions = model.config.text_encoder_args.max_position_embeddings
    pixels = torch.zeros(EXAMPLE_BATCH, 3, *model.processor.image_size, dtype=torch.uint8)
    ids = torch.ones(EXAMPLE_BATCH, min(EXAMPLE_LENGTH, positions - 1), dtype=torch.int64)
    return [
        _export(ImageEncoder(model).eval(), (pixels,), image, folder, model, positions),
        _export(TextEncoder(model).eval(), (ids, torch.ones_like(ids)), text, folder, model, positions),
    ]


def _export(
    module: nn.Module, example: tuple[Tensor, ...], graph: Graph, folder: Path, model: TCL, positions: int
) -> Path:
    import onnx
    import torch

    bounds = {"batch": MAX_BATCH, "sequence": positions}
    dims = {name: torch.export.Dim(name, min=1, max=bound) for name, bound in bounds.items()}
    shapes = tuple(
        {axis: dims[name] for axis, name in enumerate(axes) if isinstance(name, str)} for axes in graph.inputs.values()
    )
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise TclError(f"{graph.file}: torch cannot export this model: {reason}", hint="see --debug") from error
    assert program is not None  # which is what the exporter returns unless it writes the file itself
    _set_metadata(program.model, model, graph)
    path = folder / graph.file
    with _quiet():
        program.save(path)
    opsets = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
    if opsets != {"": OPSET}:
        raise TclError(f"{graph.file}: the exporter wrote operator sets {opsets} instead of {OPSET}")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TclError(f"{graph.file}: the exported graph is invalid: {' '.join(str(error).split())}") from error
    return path


def _set_metadata(ir_model: Any, model: TCL, graph: Graph) -> None:
    """Name the model and its preprocessing inside the file, and drop the exporter's traces, which hold local paths."""
    for part in (ir_model, ir_model.graph):
        part.metadata_props.clear()
    for node in ir_model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*ir_model.graph.inputs, *ir_model.graph.initializers.values()):
        value.metadata_props.clear()
    ir_model.graph.name = graph.name
    ir_model.graph.doc_string = ir_model.doc_string = None
    ir_model.producer_name = "tcl"
    ir_model.metadata_props["tcl.model_hash"] = model.model_hash
    ir_model.metadata_props["tcl.preprocessing"] = json.dumps(model.processor.settings(), sort_keys=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints progress and logs to both streams; errors still arrive as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
