"""ONNX Runtime sessions that run where they were asked to, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError, reason_of

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "trt": "TensorrtExecutionProvider",
}
Place = Literal["cpu", "cuda", "trt"]
"""A CPU, a GPU, or a GPU by ONNX Runtime's own use of TensorRT."""

_OPTIONS = {"cuda": "--device cuda", "trt": "--backend onnx-trt"}


def open_session(
    path: Path,
    threads: int | None = None,
    device: Place = "cpu",
    optimise: bool = True,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """An ONNX Runtime session.

    Args:
        path: the graph.
        threads: that one call uses on a CPU; None for as many as there are cores.
        device: where it computes.
        optimise: let ONNX Runtime rewrite the graph.
        settings: of its TensorRT provider.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CheckpointError: it does not accept the file.
        UsageError: it cannot run on this device.
    """
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx" if device == "cpu" else "onnx-gpu")
    import onnxruntime

    wanted, available = PROVIDERS[device], onnxruntime.get_available_providers()
    if wanted not in available:
        built = "without its TensorRT provider" if PROVIDERS["cuda"] in available else "for the CPU"
        raise UsageError(
            f"{_OPTIONS.get(device, device)}: this ONNX Runtime is built {built}",
            hint="pip uninstall onnxruntime, then pip install '.[onnx-gpu]'",
        )
    if device != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA libraries that came as Python packages
    providers: list[Any] = [wanted]
    if device == "trt":
        with suppress(ImportError, OSError):
            import_module("tensorrt")  # which loads the libraries of TensorRT, where they came as a Python package
        providers = [(wanted, dict(settings or {})), PROVIDERS["cuda"]]
    options = onnxruntime.SessionOptions()
    # Errors only: the rest is advice on graph clean-up. What hinders a GPU it also says by running elsewhere.
    options.log_severity_level = 3 if device == "cpu" else 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions share no public base class
        raise CheckpointError(
            f"{path}: ONNX Runtime cannot open it: {reason_of(error)}", hint="export again"
        ) from error
    check_provider(session.get_providers(), wanted)
    return session


def check_provider(found: list[str], wanted: str) -> None:
    """ONNX Runtime falls back to the CPU without an exception.

    Raises:
        UsageError: for a GPU that it cannot use.
        TclError: it chose another provider than the CPU.
    """
    if found and found[0] == wanted:
        return
    place = " and ".join(found) or "nothing"
    if wanted == PROVIDERS["trt"]:
        raise UsageError(
            f"--backend onnx-trt: ONNX Runtime cannot use TensorRT here, and would run on {place}",
            hint="pip install '.[onnx-trt]', which has the TensorRT that onnxruntime-gpu is built for, or use "
            "--backend onnx --device cuda",
        )
    if wanted == PROVIDERS["cuda"]:
        raise UsageError(
            "--device cuda: ONNX Runtime cannot use a GPU here, and would run on the CPU",
            hint="check `nvidia-smi` and that CUDA and cuDNN fit this onnxruntime-gpu, or use --device cpu",
        )
    raise TclError(f"ONNX Runtime runs on {place}, not on the CPU")
