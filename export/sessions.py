"""ONNX Runtime sessions that run where they were asked to, or not at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(
    path: Path, threads: int | None = None, device: Literal["cpu", "cuda"] = "cpu", optimise: bool = True
) -> Any:
    """An ONNX Runtime session.

    Args:
        path: the graph.
        threads: that one call uses on a CPU; None for as many as there are cores.
        device: where it computes.
        optimise: let ONNX Runtime rewrite the graph.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CheckpointError: it does not accept the file.
        UsageError: it cannot run on this device.
    """
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx-gpu" if device == "cuda" else "onnx")
    import onnxruntime

    wanted = PROVIDERS[device]
    if wanted not in onnxruntime.get_available_providers():
        raise UsageError(
            "--device cuda: this ONNX Runtime is built for the CPU",
            hint="pip uninstall onnxruntime, then pip install 'tcl-vision-language[onnx-gpu]'",
        )
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA libraries that came as Python packages
    options = onnxruntime.SessionOptions()
    # Errors only: the rest is advice on graph clean-up. What hinders a GPU it also says by running elsewhere.
    options.log_severity_level = 3 if device == "cpu" else 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # its exceptions share no public base class
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it: {one_line(error)}", hint="export again") from error
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
    if wanted == PROVIDERS["cuda"]:
        raise UsageError(
            "--device cuda: ONNX Runtime cannot use a GPU here, and would run on the CPU",
            hint="check `nvidia-smi` and that CUDA and cuDNN fit this onnxruntime-gpu, or use --device cpu",
        )
    raise TclError(f"ONNX Runtime runs on {', '.join(found) or 'nothing'}, not on the CPU")


def one_line(error: Exception) -> str:
    """An error of a library, at most 300 characters."""
    return " ".join(str(error).split())[:300]
