"""`tcl doctor`: what is installed, what is missing and how to get it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tcl import version as versions

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "cache"))


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    find = versions.installed_version
    monkeypatch.setattr(versions, "installed_version", lambda name: None if name in missing else find(name))


def test_versions_devices_folders_and_extras(tcl: Run, tmp_path: Path) -> None:
    result = tcl("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.code == 0
    assert found["versions"]["python"] == platform.python_version()
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["devices"]["cpu_cores"] >= 1 and len(found["devices"]["gpus"]) == torch.cuda.device_count()
    assert found["extras"]["train"]["missing"] == [] and "timm" in found["extras"]["train"]["installed"]
    assert "dev" not in found["extras"]
    assert found["folders"]["cache"]["path"] == str(tmp_path / "cache") and found["folders"]["cache"]["writable"]


def test_a_table_on_stdout_and_advice_on_stderr(tcl: Run) -> None:
    result = tcl("doctor")
    assert result.code == 0
    rows = dict(line.split("\t", 1) for line in result.stdout.splitlines())
    assert rows["python"] == platform.python_version() and rows["model"] == "none" and "timm" in rows["tcl[train]"]
    assert "tcl pretrain" in result.stderr  # how to get a model


def test_what_is_missing_comes_with_its_pip_line(tcl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch", "torchvision", "timm", "onnxruntime", "onnxruntime-gpu")
    result = tcl("doctor")
    assert result.code == 0
    assert "pip install '.[train]'" in result.stderr
    assert "pip install '.[onnx]'" in result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "missing:" in line and "timm" in line]
    assert "torchvision" in line and "torch," in line and "torch\t" not in result.stdout


def test_the_gpu_build_of_onnxruntime_counts(tcl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = versions.installed_version
    names = {"onnxruntime": None, "onnxruntime-gpu": "1.20"}
    monkeypatch.setattr(versions, "installed_version", lambda name: names.get(name, find(name)))
    extras = json.loads(tcl("doctor", "--json").stdout)["extras"]
    assert extras["onnx"]["missing"] == [] and extras["onnx"]["installed"]["onnxruntime"] == "1.20"


def test_the_default_model(tcl: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "model" / "config.json").write_text("{}")
    found = json.loads(tcl("doctor", "--json").stdout)
    assert found["model"] == {"kind": "model", "location": "runs/tiny/model"}
    assert not any("no model" in hint for hint in found["hints"])


def test_a_cache_that_cannot_be_written(tcl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "file" / "cache"))
    assert f"cache: {tmp_path / 'file' / 'cache'} cannot be written" in tcl("doctor").stderr


def test_a_torch_that_does_not_load(tcl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise RuntimeError("libcudart.so:\n no such file")

    monkeypatch.setattr(torch.cuda, "device_count", broken)
    result = tcl("doctor")
    assert result.code == 0 and "torch is installed but does not load: libcudart.so: no such file" in result.stderr


def test_a_gpu_that_this_torch_cannot_use(tcl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: some card'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs" in tcl("doctor").stderr
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA_VISIBLE_DEVICES" in tcl("doctor").stderr
