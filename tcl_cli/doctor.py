"""`tcl doctor`: is everything there that a command needs?"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tcl.errors import reason_of
from tcl.files.atomic import try_writing
from tcl.machine.processes import available_cores
from tcl_cli._console import out
from tcl_cli._options import App, JsonOption

EPILOG = """\
[bold]Examples[/]

  tcl doctor
  tcl doctor --json
"""

SKIPPED = ("dev",)  # extras that no command needs
FOR_GPUS = ("onnx-gpu", "onnx-trt", "trt", "trt-rtx")  # and these only where there is one
LITTLE_SPACE = 5 * 1024**3  # bytes; a published checkpoint takes 3 GB


app = App()


@app.command(epilog=EPILOG)
def doctor(json: JsonOption = False) -> None:
    """Say what is installed, where it would compute, and what is missing."""
    from tcl.version import versions

    torch, hints = _torch()
    extras = _extras()
    model = _model()
    folders = _folders()
    useful = [name for name in extras if torch["gpus"] or name not in FOR_GPUS]
    hints += [f"{name}: {extras[name]['install']}" for name in useful if extras[name]["missing"]]
    hints += [model["hint"]] if "hint" in model else []
    hints += [
        f"only {free / 1024**3:.1f} GB are free for {place}"
        for place, free in ((place, folder["free_bytes"]) for place, folder in folders.items())
        if free < LITTLE_SPACE
    ]
    hints += [
        f"{place}: {folder['path']} cannot be written" for place, folder in folders.items() if not folder["writable"]
    ]
    found = {
        "versions": {**versions(), "platform": platform.platform(terse=True)},
        "devices": {"cpu_cores": available_cores(), **torch},
        "extras": extras,
        "folders": folders,
        "model": model,
        "hints": hints,
    }
    if json:
        out.json(found)
        return
    out.table(["what", "found"], _rows(found))
    for hint in hints:
        out.hint(hint)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    devices, model = found["devices"], found["model"]
    rows = list(found["versions"].items())
    rows.append(("CPU", f"{devices['cpu_cores']} cores"))
    rows += [(f"GPU {number}", text) for number, text in enumerate(devices["gpus"])]
    if not devices["gpus"]:
        rows.append(("GPU", "none"))
    for name, extra in found["extras"].items():
        packages = ", ".join(f"{package} {version}" for package, version in extra["installed"].items())
        missing = f"missing: {', '.join(extra['missing'])}" if extra["missing"] else ""
        rows.append((f"tcl[{name}]", "; ".join(filter(None, (packages, missing)))))
    rows += [(f"{place} folder", folder["path"]) for place, folder in found["folders"].items()]
    rows.append(("model", model.get("location") or "none"))
    return rows


def _torch() -> tuple[dict[str, Any], list[str]]:
    """GPUs as torch sees them, and what to say when it sees none where there is one."""
    from tcl.version import installed_version

    if installed_version("torch") is None:
        return {"gpus": []}, []
    try:
        import torch

        gpus = []
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            gpus.append(f"{device.name}, {device.total_memory / 1024**3:.0f} GB")
    except Exception as error:  # a broken installation fails in many ways, and saying so is what this command is for
        return {"gpus": []}, [f"torch is installed but does not load: {reason_of(error)}; install it again"]
    if gpus or not _driver():
        return {"gpus": gpus, "cuda": torch.version.cuda}, []
    if torch.version.cuda is None:
        return {"gpus": []}, [
            f"there is an NVIDIA GPU, but torch {torch.__version__} is built for CPUs: pytorch.org/get-started"
        ]
    return {"gpus": [], "cuda": torch.version.cuda}, [
        "there is an NVIDIA GPU that torch does not see: check CUDA_VISIBLE_DEVICES, and the driver with `nvidia-smi`"
    ]


def _driver() -> bool:
    """Whether the NVIDIA driver finds a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and "GPU" in done.stdout


def _extras() -> dict[str, dict[str, Any]]:
    from tcl.version import extras, installed_version

    found = {}
    for name, packages in extras().items():
        if name in SKIPPED:
            continue
        # `onnxruntime-gpu` is the package `onnxruntime` too
        versions = {package: installed_version(package) or installed_version(f"{package}-gpu") for package in packages}
        installed = {package: version for package, version in versions.items() if version}
        missing = [package for package in packages if package not in installed]
        found[name] = {
            "installed": installed,
            "missing": missing,
            "install": f"pip install '.[{name}]'",
        }
    return found


def _folders() -> dict[str, dict[str, Any]]:
    """Where downloads and runs go: whether they can be written, and how much fits in."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from tcl.files.cache import cache_folder

    places = {"cache": cache_folder(), "hub cache": Path(HF_HUB_CACHE), "working": Path()}
    return {place: _folder(path) for place, path in places.items()}


def _folder(path: Path) -> dict[str, Any]:
    path = path.resolve()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        try_writing(path)
        writable = True
    except OSError:
        writable = False
    return {"path": str(path), "writable": writable, "free_bytes": shutil.disk_usage(there).free}


def _model() -> dict[str, str]:
    """The model that commands take when none is named."""
    from tcl.errors import UsageError
    from tcl.weights.find import find_bundle, find_model

    hint = None
    for find in (find_model, find_bundle):
        try:
            source = find()
        except UsageError as error:
            hint = hint or f"{error.message}: {error.hint}"
        else:
            return {"kind": source.kind, "location": source.location}
    return {"hint": str(hint)}
