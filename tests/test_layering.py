"""Rooms stand on one another in one direction; what a deployer runs loads without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tcl", "export", "tcl_cli")
HEAVY = ["torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime"]
NEED_TORCH = (
    "tcl.data.images.augment",
    "tcl.data.images.randaugment",
    "tcl.data.labels.samples",
    "tcl.data.loader",
    "tcl.data.pairs.samples",
    "tcl.distributed.world",
    "tcl.encoders.sentence_module",
    "tcl.evaluation",
    "tcl.explain.gradcam",
    "tcl.machine.seeding",
    "tcl.models",
    "tcl.objective",
    "tcl.report.samples",
    "tcl.tasks",
    "tcl.training",
    "tcl.weights",
)
"""Rooms and modules that nothing but training, evaluation and torch itself needs."""

YET_LIGHT = (
    "tcl.evaluation.metrics",
    "tcl.evaluation.published",
    "tcl.evaluation.tasks",
    "tcl.models.heads",
    "tcl.training.preflight",
    "tcl.training.upload",
    "tcl.weights.description",
    "tcl.weights.find",
    "tcl.weights.keyreport",
    "tcl.weights.layouts",
    "tcl.weights.untrained",
)
"""Of these rooms, what others load without torch."""


def modules() -> list[str]:
    files = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [name for name in names if not name.endswith("__main__")]


def needs_torch(module: str) -> bool:
    inside = any(module == name or module.startswith(f"{name}.") for name in NEED_TORCH)
    return inside and module not in YET_LIGHT


def test_what_a_deployer_runs_loads_without_torch() -> None:
    light = [module for module in modules() if not needs_torch(module)]
    assert len(light) > 150 and set(YET_LIGHT) <= set(light)
    script = (
        "import importlib, sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"
        f"for name in {light}: importlib.import_module(name)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lint_imports(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_point_downwards_and_one_that_does_not_is_seen(copy: Path) -> None:
    """One upward import of each kind is planted: on top, in a function, for types, and a loop inside a room."""
    code, output = lint_imports(copy)
    assert code == 0, output
    planted = {
        "tcl/files/atomic.py": ("tcl.data.boxes", "\nimport tcl.data.boxes\n"),
        "tcl/vectors/dtypes.py": ("tcl.search.exact", "\ndef upwards():\n    from tcl.search import exact\n"),
        "tcl/models/heads.py": (
            "tcl.tasks.vqa",
            "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tcl.tasks.vqa\n",
        ),
        "tcl/machine/signals.py": ("tcl.machine.processes", "\ndef around():\n    from tcl.machine import processes\n"),
        "tcl/machine/processes.py": ("tcl.machine.signals", "\ndef back():\n    from tcl.machine import signals\n"),
    }
    for file, (_, code_of_import) in planted.items():
        with (copy / file).open("a", encoding="utf-8") as opened:
            opened.write(code_of_import)
    code, output = lint_imports(copy)
    assert code == 1
    assert "No cycles are allowed in tcl.machine" in output
    for file, (target, _) in planted.items():
        if "machine" not in file:
            assert f"{file.removesuffix('.py').replace('/', '.')} -> {target}" in output, output
