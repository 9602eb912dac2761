"""`tcl export --trt`: engines in the bundle, and what is said before anything is written when there can be none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcl.encoders.bundle_tar import pack, unpacked
from tcl.encoders.sessions import open_session
from tcl.encoders.tensorrt.cuda import Gpu
from tests.encoders.tensorrt import fake_tensorrt
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
        (("--trt", "--precision", "int8", "--int8", "dynamic", "--calibrate", "images"), "leave out --int8 dynamic"),
        (("--trt", "--precision", "int8", "--calibrate", "images"), "without --calibrate-texts there are none"),
        (("--trt", "--precision", "fp8"), "fp8 finds its ranges on real images and texts"),
        (("--precision", "fp8", "--calibrate", "images"), "without --calibrate-texts there are none"),
        (("--precision", "fp8", "--calibrate-texts", "t.txt"), "-> add --calibrate IMAGES, or leave fp8 out"),
        (("--precision", "fp8"), "without --calibrate and --calibrate-texts there are none"),
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
    for option in (("--out", "other"), ("--pack",), ("--calibrate", "images"), ("--no-matcher",)):
        done = tcl("export", "--trt", "--model", "exports/tiny", *option)
        assert done.code == 2 and f"{option[0]} has no effect" in done.stderr


def test_a_packed_bundle(exported: Path, tcl: Tcl) -> None:
    """Its engines go where `--model` unpacks it to."""
    pack(exported, Path("tiny.tar"))
    done = tcl("export", "--trt", "--model", "tiny.tar")
    assert done.code == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == unpacked(Path("tiny.tar")) and _engines(folder) == _engines(exported)


def test_a_precision_that_the_bundle_lacks(exported: Path, tcl: Tcl) -> None:
    done = tcl("export", "--trt", "--model", "exports/tiny", "--precision", "fp16")
    assert done.code == 2 and "has no fp16 graphs" in done.stderr


def test_no_tensorrt(workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    done = tcl("export", "--trt")
    assert done.code == 2 and "pip install '.[trt]'" in done.stderr
    assert not Path("exports").exists()


def test_that_nothing_could_run_them_is_said(exported: Path, tcl: Tcl) -> None:
    done = tcl("export", "--trt", "--profile", "image=1,2,4", "--workspace", "2", "--model", "exports/tiny", "--json")
    assert done.stderr.count("not verified: this machine has no GPU that could run it") == 2
    for entry in json.loads(done.stdout)["engine_verification"].values():
        assert entry == {"verified": None, "not_run": "this machine has no GPU that could run it"}
    sidecar = json.loads(next(exported.glob("engines/*/image_encoder.fp32.json")).read_text())
    assert sidecar["verified"] is None


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch, run: Callable[[str, Any], Any]) -> None:
    """Engines answer by `run`, given the name of the graph and its session in ONNX Runtime."""

    class Session:
        def __init__(self, package: Any, built: Any) -> None:
            graph = built.sidecar.graph
            self.graph, self.session = graph, open_session(built.path.parents[2] / f"{graph}.onnx")

        def run(self, outputs: list[str], feed: Any) -> Any:
            return run(self.graph, self.session.run(outputs, feed))

    monkeypatch.setattr("export.verify.engines.EngineSession", Session)
    monkeypatch.setattr("export.verify.engines.runtime", lambda: None)
    monkeypatch.setattr("export.verify.engines.current_gpu", lambda: Gpu("NVIDIA L4", "8.9", "13.0", "13.0"))


def test_engines_that_run_are_compared_with_the_model(
    workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    _on_a_gpu(monkeypatch, lambda graph, found: found)
    done = tcl("export", "--no-matcher", "--trt", "--calibrate", "images", "--json")
    assert done.code == 0, done.stderr
    assert done.stderr.count(" MB  verified") == 2 and done.stderr.count("  ok  ") == 2
    for entry in json.loads(done.stdout)["engine_verification"].values():
        assert entry["verified"] and entry["reference"] == "the model, in torch in float32"
        assert entry["checks"][-1]["runtime"].endswith("on NVIDIA L4")


def test_an_engine_that_is_off(exported: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_gpu(monkeypatch, lambda graph, found: [-found[0]] if graph == "text_encoder" else found)
    done = tcl("export", "--trt", "--model", "exports/tiny")
    assert (done.code, done.stdout) == (3, "exports/tiny\n")
    assert " MB  verified" in done.stderr and " MB  FAILED" in done.stderr
    assert "text_encoder.fp32.engine: values: text_embeds: max |difference|" in done.stderr
    assert "marked unverified" in done.stderr
    sidecar = json.loads(next(exported.glob("engines/*/text_encoder.fp32.json")).read_text())
    assert sidecar["verified"] is False and sidecar["verification"]["checks"][-1]["passed"] is False
    assert tcl("export", "--trt", "--model", "exports/tiny", "--no-verify").code == 3, "it is still marked"
    assert tcl("export", "--trt", "--model", "exports/tiny", "--bound", "fp32=3").code == 0
    assert tcl("export", "--trt", "--model", "exports/tiny").code == 3, "what a moved bound let pass is compared again"


def test_commands_say_why_an_engine_is_built_anew(workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tcl("export", "--no-matcher").code == 0
    fake_tensorrt.install_for(Path("exports/tiny"), monkeypatch)
    reason = "exports/tiny: has no engine of image_encoder fp32; building it from the ONNX file, which takes minutes"
    embedded = ("embed", "images", "--out", "v.npy", "--model", "exports/tiny", "--backend", "trt")
    done = tcl(*embedded)
    assert done.code == 0 and done.stderr.count(reason) == 1, done.stderr
    (sidecar,) = Path("exports/tiny/engines").glob("*/image_encoder.fp32.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"version": "10.7.0"}))
    done = tcl(*embedded, "--restart")
    assert done.code == 0 and done.stderr.count("was built by TensorRT 10.7.0, and here is TensorRT 11.4.0.106") == 1
    done = tcl("search", "a red circle", "--index", "v.npy", "--model", "exports/tiny", "--backend", "trt")
    assert done.code == 0 and "has no engine of text_encoder fp32; building it" in done.stderr


def test_8_bit_floats(workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    Path("texts.txt").write_text("a red circle\na blue square\n")
    real = ("--calibrate", "images", "--calibrate-texts", "texts.txt")
    done = tcl("export", "--no-matcher", "--trt", "--precision", "fp8,fp16", *real, "--bound", "fp8=0.9")
    assert done.code == 0, done.stderr
    assert [name for name in _engines(Path("exports/tiny")) if name.endswith("fp8.engine")] == [
        "image_encoder.fp8.engine",
        "text_encoder.fp8.engine",
    ]
    manifest = json.loads(Path("exports/tiny/bundle.json").read_text())
    assert manifest["precisions"] == ["fp16", "fp8"] and manifest["verification"]["moved"] == ["fp8"]
    assert manifest["graphs"]["text_encoder"]["precisions"]["fp8"]["quantisation"] == "static"
    done = tcl("embed", "images", "--out", "v.npy", "--model", "exports/tiny", "--precision", "fp8")
    assert done.code == 2 and "ONNX Runtime does not run fp8 graphs on cpu" in done.stderr
    assert "use --backend trt" in done.stderr
