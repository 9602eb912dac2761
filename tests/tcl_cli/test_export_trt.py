"""`tcl export --trt`: engines in the bundle, and what is said before anything is written when there can be none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tcl_cli.conftest import Result

Tcl = Callable[..., Result]

pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def exported(workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`exports/tiny`, with TensorRT for RTX the only one that is there."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = tcl("export", "--no-matcher", "--trt", "--profile", "image=1,2,4", "--workspace", "2")
    assert done.code == 0, done.stderr
    assert done.stdout == "exports/tiny\n"
    assert "Building 2 engines with TensorRT for RTX" in done.stderr
    return Path("exports/tiny")


def _engines(bundle: Path) -> list[str]:
    return sorted(path.name for path in bundle.glob("engines/*/*"))


def test_the_whole_command(exported: Path, tcl: Tcl) -> None:
    assert _engines(exported) == [
        f"{graph}.fp32.{kind}" for graph in ("image_encoder", "text_encoder") for kind in ("engine", "json")
    ]
    sidecar = json.loads(next(exported.glob("engines/*/image_encoder.fp32.json")).read_text())
    assert sidecar["profiles"]["image"] == [1, 2, 4] and sidecar["profiles"]["length"] == [1, 25, 25]
    assert sidecar["workspace"] == 2_000_000_000
    again = tcl("export", "--trt", "--profile", "image=1,2,4", "--workspace", "2", "--model", "exports/tiny", "--json")
    assert again.code == 0, again.stderr
    assert [Path(path).name for path in json.loads(again.stdout)["engines"]] == _engines(exported)[::2]
    assert again.stderr.count("  there  ") == 2
    done = tcl(
        "embed", "images", "--out", "v.npy", "--model", "exports/tiny", "--json"
    )  # which the engines do not hinder
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "image=1,2,3"), "--profile is of TensorRT engines, and none are built"),
        (("--workspace", "2"), "--workspace is of TensorRT engines"),
        (("--hardware-compatible",), "--hardware-compatible is of TensorRT engines"),
        (("--trt", "--profile", "image=3,2,1"), "must not fall"),
        (("--trt", "--profile", "pixels=1,2,3"), "no such kind of axis"),
        (("--trt", "--workspace", "0"), "--workspace 0: no amount of memory"),
        (("--trt", "--workspace", "nan"), "no amount of memory"),
        (("--trt", "--hardware-compatible"), "--hardware-compatible: TensorRT for RTX"),
        (("--trt", "--version-compatible"), "--version-compatible: TensorRT for RTX"),
        (("--trt", "--precision", "int8"), "int8 for TensorRT finds its ranges on real images and texts"),
        (("--trt", "--precision", "int8", "--int8", "dynamic", "--calibrate", "images"), "int8 for TensorRT"),
    ],
)
def test_refused_before_anything_is_written(
    workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = tcl("export", *arguments)
    assert done.code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not Path("exports").exists()


def test_options_of_exports_with_a_bundle(exported: Path, tcl: Tcl) -> None:
    for option in (("--out", "other"), ("--pack",), ("--no-verify",), ("--bound", "fp32=1"), ("--no-matcher",)):
        done = tcl("export", "--trt", "--model", "exports/tiny", *option)
        assert done.code == 2 and f"{option[0]} has no effect" in done.stderr


def test_a_precision_that_the_bundle_lacks(exported: Path, tcl: Tcl) -> None:
    done = tcl("export", "--trt", "--model", "exports/tiny", "--precision", "fp16")
    assert done.code == 2 and "has no fp16 graphs" in done.stderr


def test_no_tensorrt(workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    done = tcl("export", "--trt")
    assert done.code == 2 and "pip install 'tcl-vision-language[trt]'" in done.stderr
    assert not Path("exports").exists()
