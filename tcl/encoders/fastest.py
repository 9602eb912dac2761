"""What `tcl bench` found on this machine, and what `--backend auto` makes of it.

One file for each machine and model, in the cache folder. The machine is its processor, cores, GPUs and the versions of
what computes: when one of them changes, the file is another one, and the old figures count no more.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from tcl.files.atomic import shared_file
from tcl.files.cache import CacheError, cache_folder
from tcl.machine.processes import available_cores
from tcl.version import __version__
from tcl.weights.find import BUNDLE_FILE, CONFIG_FILE, ModelSource, read_json

FORMAT_VERSION = 1
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
LOSSY = ("int8", "fp8")  # `auto` never takes these because they are fast
RERANKING = ("image_tokens", "image_key_values", "matcher")


class Choice(NamedTuple):
    """What `--backend auto` opens.

    Attributes:
        model: a bundle, or the model that was asked for.
        backend: as of `open_encoder`.
        device: likewise.
        precision: likewise.
    """

    model: str
    backend: str
    device: str
    precision: str


def machine() -> dict[str, Any]:
    """What decides the speed of this machine."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "gpus": gpus(),
        "versions": {"tcl": __version__} | dict(_versions()),
    }


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs, as their driver tells them."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def save(record: dict[str, Any]) -> Path:
    """Keep a result; it replaces that of an earlier run.

    Raises:
        CacheError: the cache cannot be written.
    """
    path = _file(record["machine"], record["model_hash"])
    try:
        with shared_file(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CacheError.of(path.name, error) from error
    return path


def load(model_hash: str) -> dict[str, Any] | None:
    """The result of this machine for a model; None where there is none, or it cannot be read."""
    if not any(_folder().glob(f"*-{model_hash[:40]}.json")):  # before anything asks for GPUs
        return None
    try:
        record = json.loads(_file(machine(), model_hash).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.get("format_version") == FORMAT_VERSION
    return record if whole and record.get("model_hash") == model_hash else None


def choose(source: ModelSource, device: str = "auto", precision: str = "auto", single: bool = True) -> Choice | None:
    """The fastest verified way to run a model here, by the saved result of `tcl bench`; None where there is none.

    Args:
        source: the model. A bundle is never exchanged for another model; a run may be, for a bundle made of it.
        device: to be used; `auto` is any.
        precision: likewise; `auto` is any that does not lose more than rounding.
        single: for single texts, where the latency counts; else for many images.
    """
    try:
        record = load(_hash_of(source))
        found = [] if record is None else list(_candidates(record, source, device, precision, single))
    except (KeyError, TypeError, AttributeError, ValueError):  # a damaged file is no result
        return None
    return min(found, key=lambda item: item[0])[1] if found else None


def _candidates(
    record: dict[str, Any], source: ModelSource, device: str, precision: str, single: bool
) -> Iterator[tuple[float, Choice]]:
    """Seconds per input, and what gives them."""
    for result in record["results"]:
        wanted = device in ("auto", result["device"]) and precision in ("auto", result["precision"])
        lossy = precision == "auto" and result["precision"] in LOSSY
        if result["error"] or not result["verified"] or not wanted or lossy:
            continue
        model = source.location
        if result["bundle"] is None:
            if source.kind == "bundle":
                continue
        elif source.kind != "bundle":
            if not _replaces(Path(result["bundle"]), record["model_hash"], result["precision"]):
                continue
            model = str(result["bundle"])
        elif Path(result["bundle"]) != source.path.resolve():
            continue
        if single:
            seconds = float(result["latency"]["text"]["median"])
        else:
            seconds = 1 / max(float(each["median"]) for each in result["throughput"] if each["kind"] == "image")
        yield seconds, Choice(model, result["backend"], result["device"], result["precision"])


def _replaces(bundle: Path, model_hash: str, precision: str) -> bool:
    """Whether a bundle is still there, verified in a precision, and able to do all that the model can."""
    if not (bundle / BUNDLE_FILE).is_file():
        return False
    manifest: dict[str, Any] = read_json(bundle / BUNDLE_FILE)
    able = all(graph in manifest["graphs"] for graph in RERANKING)
    entries = [graph["precisions"].get(precision, {}) for graph in manifest["graphs"].values()]
    verified = all(entry.get("verified", manifest["verified"]) for entry in entries)
    return bool(manifest["model_hash"] == model_hash and verified and able)


def _hash_of(source: ModelSource) -> str:
    """As the folder records it; whoever opens the model computes it anew. Empty for files and hub ids."""
    name = {"bundle": BUNDLE_FILE, "model": CONFIG_FILE}.get(source.kind)
    if name is None or not (source.path / name).is_file():
        return ""
    return str(read_json(source.path / name).get("model_hash") or "")


def _folder() -> Path:
    return cache_folder() / "bench"


def _file(found: dict[str, Any], model_hash: str) -> Path:
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return _folder() / f"{digest[:16]}-{model_hash[:40]}.json"


def _versions() -> Iterator[tuple[str, str]]:
    for name in RUNTIMES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
