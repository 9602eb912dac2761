"""A model as ONNX files: every graph in every precision, standard operators only. `export.verify` verifies them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.graphs.fp8 import quantise_float8
from export.graphs.int8 import Feeds, quantise
from tcl.encoders.graphs import DEFAULT_PRECISION, OPSET, PRECISIONS, Graph, graphs
from tcl.errors import TclError, UsageError, reason_of

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

INLINE_LIMIT = (1 << 31) - (1 << 24)
"""Bytes of weights that a file of the format can hold, some room left; more go to a file of their own beside it."""

QUANTISED = {"int8": ("fp32", quantise), "fp8": ("fp16", quantise_float8)}
"""Precisions that are made of the graph in another one, which one, and by what."""


def check_precisions(precisions: Sequence[str]) -> tuple[str, ...]:
    """The precisions in the order in which they are written, each once.

    Raises:
        UsageError: there is none, or one that does not exist.
    """
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown or not precisions:
        raise UsageError(
            f"no such precision: {unknown[0]!r}" if unknown else "no precision was given",
            hint=f"a comma-separated list of {', '.join(PRECISIONS)}",
        )
    return tuple(name for name in PRECISIONS if name in precisions)


def export_onnx(
    model: TCL,
    folder: Path,
    precisions: Sequence[str] = (DEFAULT_PRECISION,),
    *,
    matcher: bool = True,
    calibration: Callable[[Graph, str], Feeds] = lambda graph, precision: (),
    progress: Callable[[str], object] = lambda file: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Write the graphs of `model`; the same model gives the same bytes.

    Args:
        model: on the CPU, in evaluation mode.
        folder: exists.
        precisions: of `PRECISIONS`.
        matcher: with the graphs that re-ranking needs.
        calibration: typical inputs of a graph in a precision, which fix the ranges of int8 and fp8; without any, int8
            finds them for every batch, and fp8 cannot be made.
        progress: told the name of each file before it is written.

    Returns:
        By graph and precision: `file`, and of int8 and fp8 `quantisation`.

    Raises:
        UsageError: a precision does not exist, or not for this model; fp8 lacks typical inputs.
        TclError: the model has a layer that cannot be exported.
    """
    from export.graphs.build import sizes_of
    from export.graphs.vision import is_plain

    if "bf16" in precisions and not is_plain(model.visual_encoder):
        raise UsageError(
            f"bf16: {model.config.image_encoder} is traced, and its convolution has no bfloat16 form in ONNX {OPSET}",
            hint="leave bf16 out of --precision; fp16 works",
        )
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for graph in graphs(sizes_of(model), matcher):
        found[graph.name] = {}
        for precision in check_precisions(precisions):
            progress(graph.file(precision))
            found[graph.name][precision] = _write(model, graph, precision, folder, calibration)
    return found


def _write(
    model: TCL, graph: Graph, precision: str, folder: Path, calibration: Callable[[Graph, str], Feeds]
) -> dict[str, Any]:
    import onnx

    path = folder / graph.file(precision)
    entry: dict[str, Any] = {"file": path.name}
    if precision in QUANTISED:
        feeds = calibration(graph, precision)
        if precision == "fp8" and not feeds:
            raise UsageError(
                f"fp8: {graph.name} finds its ranges on real images and texts, and what it reads is not among them",
                hint="name some by --calibrate IMAGES --calibrate-texts TEXTS",
            )
        origin, make = QUANTISED[precision]
        with _source(model, graph, origin, folder) as source:
            entry["quantisation"] = make(source, path, feeds)
    else:
        _save(model, graph, precision, path)
    if _data_file(path).exists():
        entry["data"] = _data_file(path).name
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TclError(f"{path.name}: the exported graph is invalid: {reason_of(error)}") from error
    return entry


@contextmanager
def _source(model: TCL, graph: Graph, precision: str, folder: Path) -> Iterator[Path]:
    """The file of a graph in a precision; where that was not wanted, it is gone afterwards."""
    path = folder / graph.file(precision)
    wanted = path.exists()
    if not wanted:
        _save(model, graph, precision, path)
    yield path
    if not wanted:
        for part in (path, _data_file(path)):
            part.unlink(missing_ok=True)


def _save(model: TCL, graph: Graph, precision: str, path: Path) -> None:
    import onnx

    from export.graphs.build import build

    made = build(model, graph, precision).model(graph, precision, metadata(model))
    size = sum(len(weight.raw_data) for weight in made.graph.initializer)
    onnx.save(made, path, save_as_external_data=size > INLINE_LIMIT, location=_data_file(path).name)


def _data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def metadata(model: TCL) -> Mapping[str, str]:
    """What every file says about itself: `tcl.model_hash` and `tcl.preprocessing`."""
    return {
        "tcl.model_hash": model.model_hash,
        "tcl.preprocessing": json.dumps(model.processor.settings(), sort_keys=True),
    }
