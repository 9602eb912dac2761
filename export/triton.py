"""A bundle as a model repository of the Triton inference server: a folder and a `config.pbtxt` for each graph."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tcl.encoders.bundle import read_bundle, read_graphs
from tcl.encoders.graphs import DEFAULT_PRECISION, ONNX_RUNTIME, Graph, Port
from tcl.errors import UsageError
from tcl.files.atomic import atomic_folder
from tcl.files.locks import writing

CONFIG = "config.pbtxt"
VERSION = "1"
MODEL_FILE = "model.onnx"  # what Triton looks for with this backend
TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}
MAX_BATCH = 64
QUEUE_MICROSECONDS = 1000  # that a request waits for others to share a batch


def write_repository(
    folder: Path, target: Path, precision: str = DEFAULT_PRECISION, max_batch: int = MAX_BATCH
) -> None:
    """Write the new model repository `target` for the bundle in `folder`.

    Graphs are hard links to those of the bundle where the file system allows it, else copies.

    Args:
        folder: the bundle.
        target: must not exist.
        precision: of the graphs.
        max_batch: largest batch that Triton makes of several requests.

    Raises:
        UsageError: `target` exists or cannot be written, or ONNX Runtime does not run the precision.
        CheckpointError: the bundle is damaged.
    """
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another folder")
    if precision not in ONNX_RUNTIME:
        raise UsageError(
            f"{precision}: ONNX Runtime does not run it, in Triton neither", hint=f"choose {', '.join(ONNX_RUNTIME)}"
        )
    if max_batch < 1:
        raise UsageError(f"a largest batch of {max_batch}: at least 1 is needed")
    bundle = read_bundle(folder)
    described = read_graphs(folder).values()
    with writing(target), atomic_folder(target) as repository:
        for graph in described:
            source = bundle.graph_file(graph.name, precision)
            version = repository / graph.name / VERSION
            version.mkdir(parents=True)
            _place(source, version / MODEL_FILE)
            data = bundle.graphs[graph.name][precision].get("data")
            if data:
                _place(folder / str(data), version / str(data))  # the graph names it so
            text = config(graph, precision, bundle.model_hash, max_batch)
            (repository / graph.name / CONFIG).write_text(text, encoding="utf-8")


def config(graph: Graph, precision: str, model_hash: str, max_batch: int = MAX_BATCH) -> str:
    """The `config.pbtxt` of a graph.

    Requests share a batch where every input has one row per request. Graphs of which one image or one list of answers
    serves a whole batch get theirs as they are sent.
    """
    batched = all(port.axes[0] == "batch" for port in graph.inputs)
    lines = [
        f"name: {_quoted(graph.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch if batched else 0}",
        *_ports("input", graph.inputs, precision, batched),
        *_ports("output", graph.outputs, precision, batched),
    ]
    if batched:
        lines += ["dynamic_batching {", f"  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}", "}"]
    for key, value in (("tcl.model_hash", model_hash), ("tcl.precision", precision)):
        lines += [
            "parameters {",
            f"  key: {_quoted(key)}",
            f"  value {{ string_value: {_quoted(value)} }}",
            "}",
        ]
    return "\n".join(lines) + "\n"


def _ports(field: str, ports: Sequence[Port], precision: str, batched: bool) -> Iterator[str]:
    for port in ports:
        axes = port.axes[1:] if batched else port.axes
        dims = ", ".join("-1" if isinstance(axis, str) else str(axis) for axis in axes)
        yield f"{field} {{"
        yield f"  name: {_quoted(port.name)}"
        yield f"  data_type: {TYPES[Graph.dtype(port, precision)]}"
        yield f"  dims: [ {dims} ]"
        yield "}"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
