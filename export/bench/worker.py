"""What `tcl bench` runs in a process of its own for each way of computing: open, encode, take turns, look at memory.

The process has nothing else in its memory, and when it dies, the others go on. How many operations the matrix products
of a graph take is counted while it runs once.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcl.data.inputs.listing import list_inputs
from tcl.embedding.pipeline import is_out_of_memory
from tcl.embedding.run import embed
from tcl.encoders.base import Encoder
from tcl.errors import TclError, UsageError

COUNTED = ("fp32", "fp16")
"""Precisions whose products are MatMul, Gemm and Conv; those of int8 are other operators and as many."""


def graph_flops(folder: Path, name: str, precision: str, feed: Mapping[str, NDArray[Any]]) -> float | None:
    """Operations of a graph of a bundle for one batch: twice the multiplications.

    Args:
        folder: the bundle.
        name: of the graph.
        precision: of the file; one that cannot be counted is counted in another.
        feed: inputs.

    Returns:
        None where no graph can be counted, or `onnx` is not installed.
    """
    from tcl.encoders.bundle import read_bundle

    bundle = read_bundle(folder)
    choice = next((one for one in (precision, *COUNTED) if one in COUNTED and one in bundle.precisions), None)
    if find_spec("onnx") is None or choice is None or bundle.graphs[name][choice].get("data"):
        return None
    import onnx
    import onnxruntime

    model = onnx.load(bundle.graph_file(name, choice))
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    wanted = {side for node in products for side in (node.input[0], node.output[0])} - set(weights)
    present = {port.name for port in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=side) for side in sorted(wanted - present))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    found = zip(names, session.run(names, dict(feed)), strict=True)
    shapes = {side: list(array.shape) for side, array in found} | weights
    shapes |= {port: list(array.shape) for port, array in feed.items()}
    total = 0
    for node in products:
        taken = prod(shapes[node.input[1]][1:]) if node.op_type == "Conv" else shapes[node.input[0]][-1]
        total += 2 * prod(shapes[node.output[0]]) * taken
    return float(total)


Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")
NAMES = {"trt": "tensorrt"}
"""How the backend of an encoder begins, where that is not what it is asked for by."""

PEAK_SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is the peak
PEAK_ROUNDS = 10


class Way(NamedTuple):
    """One way of computing a model's vectors.

    Attributes:
        backend: as of `open_encoder`.
        device: `cpu` or `cuda`.
        precision: of the computation.
        model: what is opened.
        bundle: the same, where it is one.
    """

    backend: str
    device: str
    precision: str
    model: str
    bundle: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.backend}-{self.device} {self.precision}"


@dataclass
class _Opened:
    way: Way
    encoder: Encoder
    arrays: dict[str, tuple[NDArray[Any], ...]]
    warm: set[tuple[str, int]]
    device_memory: int


_opened: _Opened  # of this process


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """What a function returns, or why it failed in one line; exceptions of libraries do not travel well."""
    try:
        return function(*arguments), None
    except TclError as error:
        return None, error.message
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def open_way(way: Way, images: Sequence[str], texts: Sequence[str], lanes: int) -> dict[str, Any]:
    """Open the encoder as `tcl embed` does.

    Args:
        way: how.
        images: that it is measured with.
        texts: likewise.
        lanes: threads that call it at once, where that helps.

    Returns:
        The model's hash and its vectors of both.
    """
    global _opened
    before = _device_memory() if way.device == "cuda" else 0
    encoder = _open(way, lanes)
    arrays: dict[str, tuple[NDArray[Any], ...]] = {
        "image": (encoder.processor.images(images),),
        "text": encoder.processor.texts(texts),
    }
    _opened = _Opened(way, encoder, arrays, set(), before)
    return {
        "model_hash": encoder.model_hash,
        "embed_dim": encoder.embed_dim,
        "lanes": encoder.lanes,
        "image_size": list(encoder.processor.image_size),
        "tokens": int(arrays["text"][0].shape[1]),
        "vectors": {kind: _encode(kind)(*arrays[kind]) for kind in KINDS},
    }


def take_turn(kind: Kind, batch: int, seconds: float) -> tuple[float, float] | None:
    """Inputs per second, with every lane busy for about so long, and how long it was; None: not enough memory."""
    try:
        encode, arrays = _prepared(kind, batch)
        began = time.perf_counter()

        def lane(_: int) -> int:
            calls = 0
            while calls == 0 or time.perf_counter() - began < seconds:
                encode(*arrays)
                calls += 1
            return calls

        with ThreadPoolExecutor(_opened.encoder.lanes) as pool:
            calls = sum(pool.map(lane, range(_opened.encoder.lanes)))
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    taken = time.perf_counter() - began
    return calls * batch / taken, taken


def single_calls(kind: Kind, seconds: float) -> list[float]:
    """Seconds of calls with one input and all cores, for about so long; `open_single` goes before."""
    encode, arrays = _prepared(kind, 1)
    found: list[float] = []
    while not found or sum(found) < seconds:
        began = time.perf_counter()
        encode(*arrays)
        found.append(time.perf_counter() - began)
    return found


def open_single() -> None:
    """Open the encoder anew as `tcl search` does, for single inputs."""
    if _opened.encoder.lanes > 1:
        _opened.encoder = _open(_opened.way, 1)
        _opened.warm.clear()


def memory() -> dict[str, int | None]:
    """Bytes that this process held at most, and those it took on the GPU: where torch does not count, all that did."""
    found: dict[str, int | None] = {"memory": _peak_memory(), "device_memory": None}
    if _opened.way.device == "cuda":
        if _opened.way.backend.startswith("torch"):
            import torch

            found["device_memory"] = torch.cuda.max_memory_reserved()
        else:  # ONNX Runtime and TensorRT give nothing back while they live
            found["device_memory"] = max(_device_memory() - _opened.device_memory, 0) or None
    return found


def end_to_end(source: str, rows: int, batch: int, workers: int) -> dict[str, Any]:
    """Read, decode, encode and write up to so many images, as `tcl embed` does."""
    inputs = list_inputs(source, "image")
    inputs = inputs.slice(0, min(len(inputs), rows))
    with tempfile.TemporaryDirectory() as folder:
        report = embed(inputs, _opened.encoder, Path(folder) / "v.npy", batch_size=batch, workers=workers)
    return {
        "images_per_second": (report.count + report.failed) / max(report.seconds, 1e-9),
        "images": report.count,
        "failed": report.failed,
        "workers": workers,
        "rates": report.rates,
        "bottleneck": report.bottleneck,
    }


def flops() -> dict[str, float | None]:
    """Operations of one image and of one text of the sample's length: matrix products, twice their multiplications."""
    if _opened.way.backend.startswith("torch"):
        return {kind: _torch_flops(kind) for kind in KINDS}

    folder, precision = Path(_opened.way.model), _opened.way.precision
    graphs: dict[Kind, str] = {"image": "image_encoder", "text": "text_encoder"}
    return {kind: graph_flops(folder, graph, precision, _one(kind)) for kind, graph in graphs.items()}


def matmul_peaks() -> dict[str, float]:
    """Operations per second of a large matrix product, the best of several; by precision.

    Of a GPU torch alone can tell, of a CPU numpy and, where it is what is measured here, torch.
    """
    device = _opened.way.device
    side = PEAK_SIDES[device]
    found: dict[str, float] = {}
    if device == "cpu":
        square = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
        found["fp32"] = _peak(lambda: square @ square, side)
    if _opened.way.backend.startswith("torch"):
        import torch

        names = {"fp32": torch.float32}
        if device == "cuda":
            names |= {"fp16": torch.float16, "bf16": torch.bfloat16}
        for name, dtype in names.items():
            matrix = torch.randn(side, side, dtype=dtype, device=device)

            def product(matrix: torch.Tensor = matrix) -> None:
                matrix @ matrix
                if device == "cuda":
                    torch.cuda.synchronize()

            found[name] = max(_peak(product, side), found.get(name, 0.0))
    return found


def _open(way: Way, lanes: int) -> Encoder:
    from tcl.encoders.open import open_encoder

    how: dict[str, Any] = {"backend": way.backend, "device": way.device, "precision": way.precision}
    encoder = open_encoder(way.model, lanes=lanes, allow_unverified=True, **how)
    if encoder.precision != way.precision or not encoder.backend.startswith(NAMES.get(way.backend, way.backend)):
        raise UsageError(f"{way.name} cannot be had: it would be {encoder.backend} {encoder.precision}")
    return encoder


def _encode(kind: Kind) -> Callable[..., NDArray[np.float32]]:
    return _opened.encoder.encode_image if kind == "image" else _opened.encoder.encode_text


def _prepared(kind: Kind, batch: int) -> tuple[Callable[..., NDArray[np.float32]], tuple[NDArray[Any], ...]]:
    """The function, and the samples repeated to a batch; it has run once, so that nothing is compiled any more."""
    encode, own = _encode(kind), _opened.arrays[kind]
    chosen = np.arange(batch) % len(own[0])
    arrays = tuple(np.ascontiguousarray(array[chosen]) for array in own)
    if (kind, batch) not in _opened.warm:
        encode(*arrays)
        _opened.warm.add((kind, batch))
    return encode, arrays


def _one(kind: Kind) -> dict[str, NDArray[Any]]:
    names = ("pixel_values",) if kind == "image" else ("input_ids", "attention_mask")
    return {name: array[:1] for name, array in zip(names, _opened.arrays[kind], strict=True)}


def _torch_flops(kind: Kind) -> float:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model: Any = _opened.encoder.model  # type: ignore[attr-defined]
    tensors = [torch.as_tensor(array, device=model.device) for array in _one(kind).values()]
    # Attention as plain products: torch 2.14 does not count its fused kernel for CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (model.encode_image if kind == "image" else model.encode_text)(*tensors)
    return float(counter.get_total_flops())


def _peak(product: Callable[[], object], side: int) -> float:
    product()
    best = min(_seconds(product) for _ in range(PEAK_ROUNDS))
    return 2 * side**3 / best


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _peak_memory() -> int:
    """Bytes of this process alone; what `getrusage` tells includes those of whoever started it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_memory() -> int:
    """Bytes that are in use on the first visible GPU, by everyone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={visible}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
