"""An engine that runs on a GPU: copies and computation of different batches overlap, on two streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.encoders.tensorrt.cuda import Buffer, Stream
from tcl.encoders.tensorrt.engine import BuiltEngine
from tcl.encoders.tensorrt.package import Package, one_line
from tcl.encoders.tensorrt.profiles import Arrays, Chunk, fitted
from tcl.errors import CheckpointError, TclError

STREAMS = 2  # one batch is copied while another is computed

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool"}


class EngineSession:
    """An engine that runs; threads may share it. Called as a session of ONNX Runtime is.

    Args:
        package: that loads it.
        built: the engine.

    Raises:
        CheckpointError: it is damaged, or TensorRT does not load it.
        TclError: there is not enough memory on the GPU.
    """

    def __init__(self, package: Package, built: BuiltEngine) -> None:
        self.built = built
        self._axes = built.sidecar.inputs
        self._ranges = built.sidecar.options.profiles.of(self._axes)
        trt, content = package.trt, built.read()
        with package.messages.kept() as messages:
            self._runtime = runtime = trt.Runtime(package.logger)
            if built.sidecar.version_compatible:
                runtime.engine_host_code_allowed = True  # such an engine carries the code that runs it
            self._engine = engine = runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise CheckpointError(f"{built.path}: {package.title} cannot load it: {one_line(messages)}")
            slots = [_Slot(trt, package, engine, built.path) for _ in range(STREAMS)]
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        for slot in slots:
            self._slots.put(slot)

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """The outputs by name, for inputs of any batch size.

        Raises:
            UsageError: texts are longer than the engine takes.
            TclError: the GPU failed.
        """
        parts: list[dict[str, NDArray[Any]]] = []
        pending: deque[tuple[_Slot, Chunk]] = deque()
        try:
            for chunk, rows in fitted(feed, self._axes, self._ranges):
                slot = self._free_slot(pending, parts)
                pending.append((slot, chunk))
                slot.start(rows)
            while pending:
                self._finish(pending, parts)
        finally:  # after an error: the slots are free again when what was started is done
            for slot, _ in pending:
                with suppress(TclError):
                    slot.wait()
                self._slots.put(slot)
        return [np.concatenate([part[name] for part in parts]) for name in outputs]

    def _free_slot(self, pending: deque[tuple[_Slot, Chunk]], parts: list[dict[str, NDArray[Any]]]) -> _Slot:
        """A free slot; whoever holds one never waits for another, so that threads cannot wait for each other."""
        while pending:
            try:
                return self._slots.get_nowait()
            except Empty:
                self._finish(pending, parts)
        return self._slots.get()

    def _finish(self, pending: deque[tuple[_Slot, Chunk]], parts: list[dict[str, NDArray[Any]]]) -> None:
        """Take the result of what was started first, and free its slot."""
        slot, chunk = pending[0]
        parts.append({name: array[: chunk.stop - chunk.start] for name, array in slot.finish().items()})
        pending.popleft()
        self._slots.put(slot)


class _Slot:
    """What one run needs for itself: a context of the engine, a stream, and buffers."""

    def __init__(self, trt: Any, package: Package, engine: Any, path: Path) -> None:
        self._package, self._path = package, path
        self._context = engine.create_execution_context()
        if self._context is None:
            raise TclError(f"{path}: {package.title} cannot run it: there may not be enough memory on the GPU")
        self._stream = Stream()
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        self._dtypes = {name: np.dtype(_DTYPES[engine.get_tensor_dtype(name).name]) for name in names}
        self._outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        self._buffers = {name: Buffer() for name in names}

    def start(self, feed: Arrays) -> None:
        """Start the run: copies to the GPU, the computation, and copies back."""
        context = self._context
        with self._package.messages.kept() as messages:
            for name, array in feed.items():
                if not context.set_input_shape(name, array.shape):
                    raise TclError(f"{self._path}: does not take {name} {list(array.shape)}: {one_line(messages)}")
                self._buffer(name, array.shape)[...] = array
                self._stream.upload(self._buffers[name])
            self._shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
            for name, shape in self._shapes.items():
                self._buffer(name, shape)
            for name, buffer in self._buffers.items():
                context.set_tensor_address(name, buffer.device)
            if not context.execute_async_v3(self._stream.handle):
                raise TclError(f"{self._path}: {self._package.title} failed: {one_line(messages)}")
        for name in self._outputs:
            self._stream.download(self._buffers[name])

    def wait(self) -> None:
        """Until what was started is done."""
        self._stream.wait()

    def finish(self) -> dict[str, NDArray[Any]]:
        """Wait for the run; its outputs."""
        self.wait()
        return {name: self._view(name, shape).copy() for name, shape in self._shapes.items()}

    def _buffer(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        self._buffers[name].resize(buffer_bytes(shape, self._dtypes[name]))
        return self._view(name, shape)

    def _view(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return self._buffers[name].view(shape, self._dtypes[name])


def buffer_bytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Bytes that an input or output takes; never none, which has no address."""
    return max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
