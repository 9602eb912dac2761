"""Graphs of a bundle in ONNX Runtime's TensorRT provider, which builds an engine of each; kept in the cache folder.

The engine is built once for the shapes of the usual profile; inputs of other sizes are split or padded, as otherwise
the provider would build another engine, or fail.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.encoders.bundle import Bundle, read_graphs
from tcl.encoders.fastest import machine
from tcl.encoders.sessions import open_session
from tcl.encoders.tensorrt.engine import sources
from tcl.encoders.tensorrt.profiles import Arrays, Axes, Profiles, Ranges, fitted
from tcl.files.cache import CacheError, cache_folder, locked

FOLDER = "onnxruntime-tensorrt"


class ProviderSession:
    """A session that takes inputs of any size, though its engine does not.

    Args:
        session: of ONNX Runtime.
        axes: of its inputs.
        ranges: that its engine takes.
    """

    def __init__(self, session: Any, axes: Mapping[str, Axes], ranges: Ranges) -> None:
        self._session, self._axes, self._ranges = session, axes, ranges

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """The outputs by name, for inputs of any batch size.

        Raises:
            UsageError: texts are longer than the engine takes.
        """
        parts = [
            [array[: chunk.stop - chunk.start] for array in self._session.run(list(outputs), rows)]
            for chunk, rows in fitted(feed, self._axes, self._ranges)
        ]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def open_provider_session(
    bundle: Bundle, graph: str, precision: str, max_length: int, say: Callable[[str], object] = lambda text: None
) -> ProviderSession:
    """A graph of a bundle in the TensorRT provider; building its engine takes minutes, the first time.

    Of several processes that want the same engine, one builds it and the others wait.

    Args:
        bundle: that has it.
        graph: its name.
        precision: of the file.
        max_length: at which the model's texts are cut.
        say: told in one line that an engine is built.

    Raises:
        UsageError: the provider cannot be used here.
        CheckpointError: the file is damaged.
        CacheError: the cache folder cannot be written to.
    """
    path = bundle.graph_file(graph, precision)
    profiles = Profiles.parse([], max_length)
    axes = {port.name: port.axes for port in read_graphs(bundle.folder)[graph].inputs}
    ranges = profiles.of(axes)
    made_for = [machine(), sources(bundle, graph, precision), profiles.to_json()]
    digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()[:40]
    folder = cache_folder() / FOLDER / digest  # the provider itself would take engines of another version or file
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError.of(FOLDER, error) from error
    with locked(f"{FOLDER}-{digest}"):
        if not any(folder.glob("*.engine")):
            say(f"{path}: building its engine in ONNX Runtime's TensorRT provider, which takes minutes, once")
        session = open_session(path, device="trt", settings=settings(folder, ranges, precision))
    return ProviderSession(session, axes, ranges)


def settings(folder: Path, ranges: Ranges, precision: str) -> dict[str, str]:
    """The provider's options: where engines and timings are kept, the shapes, and that half precision may be used."""
    shapes = {}
    for place, name in enumerate(("min", "opt", "max")):
        sizes = {port: "x".join(str(allowed[place]) for allowed in axes) for port, axes in ranges.items()}
        shapes[f"trt_profile_{name}_shapes"] = ",".join(f"{port}:{size}" for port, size in sizes.items())
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(precision == "fp16"),  # else it computes graphs of float16 in float32
        **shapes,
    }
