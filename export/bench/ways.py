"""Which ways `tcl bench` measures: every backend, device and precision that one model has on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from export.bench.worker import Way
from tcl.encoders.bundle import Bundle
from tcl.encoders.fastest import gpus
from tcl.encoders.onnx import PREFERRED
from tcl.errors import CheckpointError, MissingExtraError, UsageError
from tcl.weights.find import BUNDLE_FILE, CONFIG_FILE, ModelSource, read_json

GPU_PRECISIONS = ("fp32", "fp16", "bf16")  # of torch


def find_bundle_of(model_hash: str, exports: Path = Path("exports")) -> Path | None:
    """The newest bundle under `exports` that was made of this model."""
    found = [path for path in exports.glob(f"*/{BUNDLE_FILE}") if _recorded_hash(path) == model_hash]
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent if found else None


def find_run_of(model_hash: str, runs: Path = Path("runs")) -> Path | None:
    """The newest model under `runs` of this hash."""
    found = [path for path in runs.glob(f"*/model/{CONFIG_FILE}") if _recorded_hash(path) == model_hash]
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent if found else None


def find_ways(
    model: ModelSource | None, bundle: Bundle | None, device: str = "auto", compiled: bool | None = None
) -> list[Way]:
    """Every way to compute on this machine, the reference first: torch in float32 on a CPU, where there is torch.

    Args:
        model: for torch, where there is one.
        bundle: for everything else, where there is one.
        device: `cpu` or `cuda` leaves out the other one; the reference stays.
        compiled: also torch's compiler; None compiles on GPUs only, as on a CPU it takes longer than the measurement.

    Raises:
        UsageError: there is no GPU, and only that is to be measured; nothing here runs the precisions of the bundle.
        MissingExtraError: neither torch nor ONNX Runtime is installed.
    """
    devices = ["cpu", *["cuda"] * bool(gpus())]
    if device == "cuda" and "cuda" not in devices:
        raise UsageError("--device cuda: this machine has no NVIDIA GPU", hint="check `nvidia-smi`")
    ways: list[Way] = []
    for place in devices:
        wanted = device in ("auto", place)
        if model is not None and find_spec("torch") is not None:
            precisions = GPU_PRECISIONS if place == "cuda" else ("fp32",)
            if wanted or place == "cpu":
                ways += [Way("torch", place, precision, model.location) for precision in precisions]
            if wanted and (compiled or (compiled is None and place == "cuda")):
                ways += [Way("torch-compiled", place, precision, model.location) for precision in precisions]
        if bundle is not None and wanted:
            folder = str(bundle.folder.resolve())
            runs = [precision for precision in PREFERRED[place] if precision in bundle.precisions]
            if find_spec("onnxruntime") is not None:
                ways += [Way("onnx", place, precision, folder, folder) for precision in runs]
                if place == "cuda" and find_spec("tensorrt") is not None:  # whose libraries the provider takes
                    runs = [precision for precision in PREFERRED["trt"] if precision in bundle.precisions]
                    ways += [Way("onnx-trt", place, precision, folder, folder) for precision in runs]
            if place == "cuda" and (bundle.folder / "engines").is_dir():
                ways += [Way("trt", place, precision, folder, folder) for precision in bundle.precisions]
    if not ways:
        if bundle is not None and find_spec("onnxruntime") is not None:
            raise UsageError(
                f"{bundle.folder}: nothing on this machine runs its precisions, {', '.join(bundle.precisions)}",
                hint="export the model again with --precision fp32",
            )
        missing = ("onnxruntime", "onnx") if bundle is not None else ("torch", "train")
        raise MissingExtraError(*missing)
    return ways


def check_same_model(name: str, own: str, other_name: str, other: str) -> None:
    """Compare two hashes.

    Raises:
        UsageError: they differ.
    """
    if own != other:
        raise UsageError(
            f"{name}: is of model {own[:12]}, not of {other[:12]} as {other_name}",
            hint="export the model again, or name another bundle",
        )


def _recorded_hash(path: Path) -> object:
    try:
        return read_json(path).get("model_hash")
    except CheckpointError:
        return None
