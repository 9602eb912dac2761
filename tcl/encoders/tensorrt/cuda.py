"""Memory and streams of a GPU by `cuda-python`; every failed call is one line."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import MissingExtraError, TclError


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process computes on.

    Attributes:
        name: as the driver calls it.
        compute_capability: e.g. `9.0`.
        driver: newest CUDA that the driver knows, e.g. `13.0`.
        cuda: of the CUDA runtime in use.
    """

    name: str
    compute_capability: str
    driver: str
    cuda: str


def runtime() -> Any:
    """`cuda.bindings.runtime`.

    Raises:
        MissingExtraError: it is not installed.
    """
    if not _installed():
        raise MissingExtraError("cuda-python", "trt")
    return import_module("cuda.bindings.runtime")


def current_gpu() -> Gpu | None:
    """The first GPU that is visible; None where there is none, or no `cuda-python` to ask."""
    if not _installed():
        return None
    cudart = runtime()
    error, count = cudart.cudaGetDeviceCount()
    if error != cudart.cudaError_t.cudaSuccess or not count:
        return None
    properties = checked(cudart.cudaGetDeviceProperties(0))
    return Gpu(
        properties.name.decode().rstrip("\0"),
        f"{properties.major}.{properties.minor}",
        _version(checked(cudart.cudaDriverGetVersion())),
        _version(checked(cudart.cudaRuntimeGetVersion())),
    )


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of the CUDA runtime gave besides its error code.

    Raises:
        TclError: it failed.
    """
    error, *values = result
    cudart = runtime()
    if error != cudart.cudaError_t.cudaSuccess:
        hint = None
        if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
            hint = "use smaller batches, or build the engines with smaller ones, as in --profile image=1,8,32"
        raise TclError(f"the GPU: {cudart.cudaGetErrorString(error)[1].decode()} ({error.name})", hint)
    return values[0] if len(values) == 1 else None


class Stream:
    """Work on the GPU that is done in order."""

    def __init__(self) -> None:
        cudart = runtime()
        self.stream = checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._closed = weakref.finalize(self, cudart.cudaStreamDestroy, self.stream)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def upload(self, buffer: Buffer) -> None:
        """Start copying a buffer to the GPU."""
        self._copy(buffer.device, buffer.pinned, buffer.nbytes, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer) -> None:
        """Start copying a buffer from the GPU."""
        self._copy(buffer.pinned, buffer.device, buffer.nbytes, "cudaMemcpyDeviceToHost")

    def wait(self) -> None:
        """Until all that was started is done."""
        checked(runtime().cudaStreamSynchronize(self.stream))

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        cudart = runtime()
        checked(cudart.cudaMemcpyAsync(target, source, nbytes, getattr(cudart.cudaMemcpyKind, kind), self.stream))


class Buffer:
    """Memory on the GPU and its twin in page-locked memory; grows when more is asked for, and is used again otherwise.

    Attributes:
        device: address on the GPU.
        pinned: address of the twin.
        nbytes: in use.
    """

    def __init__(self) -> None:
        self.device = self.pinned = self.nbytes = self._capacity = 0
        self._free: list[weakref.finalize[..., Any]] = []

    def resize(self, nbytes: int) -> None:
        """Make room for `nbytes`; what was in it is lost when it has to grow."""
        if nbytes > self._capacity:
            self.free()
            cudart = runtime()
            self.device = int(checked(cudart.cudaMalloc(nbytes)))
            self._free.append(weakref.finalize(self, cudart.cudaFree, self.device))
            self.pinned = int(checked(cudart.cudaMallocHost(nbytes)))
            self._free.append(weakref.finalize(self, cudart.cudaFreeHost, self.pinned))
            self._capacity = nbytes
        self.nbytes = nbytes

    def free(self) -> None:
        """Give the memory back."""
        for release in self._free:
            release()
        self._free.clear()
        self.device = self.pinned = self.nbytes = self._capacity = 0

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The page-locked twin as an array, without a copy."""
        content = np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.pinned))
        array: NDArray[Any] = content[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
        return array


def _installed() -> bool:
    try:
        return find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:  # no `cuda` at all
        return False


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
