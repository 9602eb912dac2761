"""A GPU and a TensorRT that run on the CPU, for what no machine without a GPU can do: to execute an engine.

An "engine" of this fake is the ONNX file, computed by ONNX Runtime. Copies and computation happen when the stream is
waited for, not before, in the memory whose addresses were given: whoever writes to a buffer too early, frees it, or
forgets to wait gets wrong numbers here too. Shapes outside the profile are refused as TensorRT refuses them.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tcl.encoders.tensorrt.build import BuildOptions, SerializedEngine
from tcl.encoders.tensorrt.package import Messages, Package
from tcl.encoders.tensorrt.profiles import Profiles, Range

VERSION = "11.4.0.106"
GPU = "NVIDIA H200"


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


@dataclass
class Device:
    """The memory and the streams of the fake GPU.

    Attributes:
        count: GPUs that are there.
        memory: by address.
        limit: bytes; more is refused.
        streams: work that was not done yet.
        most_busy: streams that had work at the same time.
    """

    count: int = 1
    memory: dict[int, Any] = field(default_factory=dict)
    limit: int = 1 << 30
    streams: dict[int, list[Callable[[], object]]] = field(default_factory=dict)
    most_busy: int = 0

    def malloc(self, size: int) -> tuple[Error, int | None]:
        if size + sum(map(len, self.memory.values())) > self.limit:
            return Error.cudaErrorMemoryAllocation, None
        block = (ctypes.c_uint8 * size)(*[255] * min(size, 64))
        self.memory[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    def free(self, address: int) -> tuple[Error]:
        del self.memory[address]
        return (Error.cudaSuccess,)

    def create_stream(self, flags: int) -> tuple[Error, int]:
        handle = 1000 + len(self.streams)
        self.streams[handle] = []
        return Error.cudaSuccess, handle

    def enqueue(self, stream: int, work: Callable[[], object]) -> tuple[Error]:
        self.streams[stream].append(work)
        self.most_busy = max(self.most_busy, sum(map(bool, self.streams.values())))
        return (Error.cudaSuccess,)

    def copy(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[Error]:
        return self.enqueue(stream, lambda: ctypes.memmove(target, source, size))

    def synchronize(self, stream: int) -> tuple[Error]:
        work, self.streams[stream] = self.streams[stream], []
        for do in work:
            do()
        return (Error.cudaSuccess,)

    def array(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        size = int(np.prod(shape)) * dtype.itemsize
        assert len(self.memory[address]) >= size
        return np.frombuffer(self.memory[address], dtype=dtype, count=int(np.prod(shape))).reshape(shape)


class Context:
    """What `IExecutionContext` is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ranges = self.engine.ranges[name]
        if not all(low <= size <= high for size, (low, _, high) in zip(shape, ranges, strict=True)):
            self.engine.messages.add(f"IExecutionContext::setInputShape: {name} {shape} is outside the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        engine = self.engine
        sizes = {
            axis: size for port in self.shapes for axis, size in zip(engine.axes[port], self.shapes[port], strict=True)
        }
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in engine.output_shapes[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, shapes, addresses = self.engine, dict(self.shapes), dict(self.addresses)
        outputs = {name: self.get_tensor_shape(name) for name in engine.output_shapes}

        def compute() -> None:
            device = engine.device
            feed = {name: device.array(addresses[name], shapes[name], engine.dtypes[name]) for name in shapes}
            for name, values in zip(outputs, engine.session.run(list(outputs), feed), strict=True):
                device.array(addresses[name], outputs[name], engine.dtypes[name])[...] = values

        engine.device.enqueue(stream_handle, compute)
        return True


class Engine:
    """What `ICudaEngine` is."""

    def __init__(self, content: bytes, device: Device, messages: Messages, ranges: Mapping[str, tuple[Range, ...]]):
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.device, self.messages = device, messages
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.names = [port.name for port in (*inputs, *outputs)]
        self.axes = {port.name: tuple(port.shape) for port in inputs}
        self.output_shapes = {port.name: tuple(port.shape) for port in outputs}
        self.types = {port.name: port.type.removeprefix("tensor(").removesuffix(")") for port in (*inputs, *outputs)}
        self.dtypes = {
            name: np.dtype({"float": "float32"}.get(kind, kind)) for name, kind in self.types.items()
        }  # float16 has its own name
        self.ranges = ranges

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def create_execution_context(self) -> Context:
        return Context(self)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(
            name={"float": "FLOAT", "float16": "HALF"}.get(self.types[name], self.types[name].upper())
        )

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.OUTPUT if name in self.output_shapes else Mode.INPUT


def install(monkeypatch: pytest.MonkeyPatch, ranges_of: Callable[[bytes], Mapping[str, tuple[Range, ...]]]) -> Device:
    """Put the fakes in the place of `tensorrt` and `cuda.bindings.runtime`.

    Args:
        monkeypatch: of the test.
        ranges_of: the profile of an engine, by its content.
    """
    device, messages = Device(), Messages()
    cudart = ModuleType("cuda.bindings.runtime")
    cudart.__spec__ = ModuleSpec("cuda.bindings.runtime", None)
    vars(cudart).update(
        cudaError_t=Error,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaStreamNonBlocking=1,
        cudaGetDeviceCount=lambda: (Error.cudaSuccess, device.count),
        cudaGetDeviceProperties=lambda place: (Error.cudaSuccess, SimpleNamespace(name=GPU.encode(), major=9, minor=0)),
        cudaDriverGetVersion=lambda: (Error.cudaSuccess, 13010),
        cudaRuntimeGetVersion=lambda: (Error.cudaSuccess, 13000),
        cudaGetErrorString=lambda error: (Error.cudaSuccess, b"out of memory"),
        cudaStreamCreateWithFlags=device.create_stream,
        cudaStreamDestroy=lambda stream: (Error.cudaSuccess,),
        cudaStreamSynchronize=device.synchronize,
        cudaMalloc=device.malloc,
        cudaFree=device.free,
        cudaMallocHost=device.malloc,
        cudaFreeHost=device.free,
        cudaMemcpyAsync=device.copy,
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            try:
                return Engine(serialized_engine, device, messages, ranges_of(serialized_engine))
            except Exception:
                messages.add("IRuntime::deserializeCudaEngine: Serialization assertion failed")
                return None

    trt = SimpleNamespace(Runtime=Runtime, TensorIOMode=Mode)
    package = Package("tensorrt", trt, VERSION, None, messages)
    monkeypatch.setattr("tcl.encoders.tensorrt.encoder.open_package", lambda flavour: package)
    return device


def install_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], bytes] = lambda path: path.read_bytes()
) -> Device:
    """The fakes for a bundle, where building an engine takes the ONNX file.

    Args:
        folder: the bundle.
        monkeypatch: of the test.
        made: the engine of an ONNX file, itself one.
    """
    described = json.loads((folder / "bundle.json").read_text())["graphs"]
    known: dict[bytes, tuple[Any, Profiles]] = {}

    def build(package: Any, path: Path, precision: str, options: BuildOptions, progress: Any) -> SerializedEngine:
        inputs = {name: tuple(port["shape"]) for name, port in described[path.name.split(".")[0]]["inputs"].items()}
        content = made(path)
        known[content] = (inputs, options.profiles)
        return SerializedEngine(content, inputs)

    def ranges(content: bytes) -> dict[str, tuple[Range, ...]]:
        inputs, profiles = known[content]
        return profiles.of(inputs)

    monkeypatch.setattr("tcl.encoders.tensorrt.engines.build_plan", build)
    return install(monkeypatch, ranges)
