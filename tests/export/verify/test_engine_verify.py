"""Engines are compared with the model once they are built, with all but the GPU; a fault is found and written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.bundle import build_bundle
from export.verify.cases import Reference, Samples
from export.verify.checks import Bounds
from export.verify.engines import VerifiedEngine, onnx_reference, verify_engines
from export.verify.references import OnnxReference, TorchReference
from tcl.encoders.base import unverified
from tcl.encoders.bundle import Bundle, read_bundle
from tcl.encoders.tensorrt.build import BuildOptions
from tcl.encoders.tensorrt.encoder import TensorRTEncoder
from tcl.encoders.tensorrt.engine import BuiltEngine
from tcl.encoders.tensorrt.engines import build_engine, build_engines, record_verification
from tcl.encoders.tensorrt.package import Package, open_package
from tcl.encoders.tensorrt.profiles import Profiles
from tcl.errors import CheckpointError, UsageError
from tcl.models.heads import Task
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tests.bundles import FLOAT8, SCENES
from tests.conftest import CAPTIONS
from tests.encoders.tensorrt import fake_tensorrt
from tests.encoders.tensorrt.fake_tensorrt import Device

PROFILES = Profiles.parse(["image=2,2,4", "text=2,2,4", "pair=2,2,4", "length=3,10,25"], 25)
OPTIONS = BuildOptions(PROFILES)


@pytest.fixture
def mine(bundle: Bundle, tmp_path: Path) -> Bundle:
    return read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "mine")))


@pytest.fixture
def device(mine: Bundle, monkeypatch: pytest.MonkeyPatch) -> Device:
    return fake_tensorrt.install_for(mine.folder, monkeypatch)


def _package(bundle: Bundle) -> Package:
    return TensorRTEncoder(bundle.folder)._package


def _build(bundle: Bundle, graph: str, options: BuildOptions = OPTIONS) -> BuiltEngine:
    return build_engine(bundle, graph, bundle.precisions[0], options, _package(bundle))


def _verify(bundle: Bundle, engine: BuiltEngine, **options: Any) -> VerifiedEngine:
    (found,) = verify_engines(bundle, [engine], _package(bundle), lambda: onnx_reference(bundle), **options)
    return found


def _no_reference() -> Reference:
    raise AssertionError("nothing is to be compared")


def _written(engine: BuiltEngine) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(engine.path.with_suffix(".json").read_text())
    return values


def test_every_engine_against_the_model(mine: Bundle, device: Device, tiny_model: TCL) -> None:
    package, told = _package(mine), []
    built = build_engines(mine, ["fp32"], OPTIONS, package)
    assert [_written(engine)["verified"] for engine in built] == [None] * 5
    samples = Samples(tiny_model.processor, SCENES, CAPTIONS)
    found = verify_engines(
        mine, built, package, lambda: TorchReference(tiny_model), samples=samples, progress=told.append
    )
    assert told == [f"{graph} fp32" for graph in mine.graphs]
    for engine, checks in found:
        written = _written(engine)
        assert written["verified"] is True and engine.sidecar.verified is True and engine.new
        recorded = written["verification"]
        assert recorded["reference"] == "the model, in torch in float32"
        assert recorded["bounds"]["fp32"] == 1e-5 and recorded["moved"] == []
        assert recorded["checks"] == [check.to_json() for check in checks]
        values = [check for check in checks if check.subject == "values"]
        assert values and all(check.max_abs_diff <= 1e-4 for check in values)  # type: ignore[operator]
        assert {check.runtime for check in values} == {"TensorRT 11.4.0.106 on NVIDIA H200"}
        # batches of 1, 2, 7 and 64, every length, real ones: what the graphs are compared on
        assert values[0].cases == {"text_encoder": 152, "matcher": 52}.get(engine.sidecar.graph, 5)
    again = build_engines(mine, ["fp32"], OPTIONS, package)
    assert not any(engine.new for engine in again)
    kept = verify_engines(mine, again, package, _no_reference)
    assert [(engine.sidecar.verified, checks) for engine, checks in kept] == [(True, [])] * 5


@pytest.mark.parametrize("task", [None, "entailment", "nlvr2", "vqa"])
def test_without_torch_against_the_float32_graphs(
    tiny_model: TCL,
    fine_tuned: Callable[[Task], TaskModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: Task | None,
) -> None:
    model = tiny_model if task is None else fine_tuned(task)
    bundle = build_bundle(model, tmp_path / "bundle", ["fp16", "fp32"], matcher=task is None)
    fake_tensorrt.install_for(bundle.folder, monkeypatch)
    for graph in [task] if task else list(bundle.graphs):
        engine = build_engine(bundle, graph, "fp16", BuildOptions(Profiles.parse([], 25)), _package(bundle))
        found = _verify(bundle, engine)
        assert found.engine.sidecar.verified, [check.detail for check in found.checks if not check.passed]
        assert _written(engine)["verification"]["reference"].startswith("the float32 graphs of the bundle")


def test_its_inputs_are_those_of_the_model(bundle: Bundle) -> None:
    assert OnnxReference(bundle).small
    assert OnnxReference(bundle).processor.image_size == (32, 32)


def _swapped(path: Path) -> bytes:
    """A graph with the keys and values of one head exchanged."""
    model = onnx.load(path)
    names = [f"text_encoder.bert.encoder.layer.0.attention.self.{part}.weight" for part in ("key", "value")]
    for weight in model.graph.initializer:
        if weight.name in names:
            weight.name = names[1 - names.index(weight.name)]
    content: bytes = model.SerializeToString()
    return content


def test_a_fault_is_caught_and_written_down(mine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install_for(mine.folder, monkeypatch, made=_swapped)
    engine, checks = _verify(mine, _build(mine, "text_encoder"))
    assert [check.subject for check in checks if not check.passed] == ["values"]
    assert engine.sidecar.verified is False and _written(engine)["verified"] is False
    failed = _written(engine)["verification"]["checks"][-1]
    assert failed["max_abs_diff"] > 1e-3 and "text_embeds: max |difference|" in failed["detail"]
    encoder = TensorRTEncoder(mine.folder)
    assert encoder.failed_engine == engine.path
    assert unverified(encoder) == str(engine.path)
    # Another build is compared anew, with bounds of its own.
    assert not _build(mine, "text_encoder").new
    moved = _verify(mine, _build(mine, "text_encoder"), bounds=Bounds({"fp32": 10.0})).engine
    assert moved.sidecar.verified and moved.sidecar.verification["moved"] == ["fp32"]
    assert unverified(TensorRTEncoder(mine.folder)) is None
    assert _verify(mine, moved, bounds=Bounds({"fp32": 10.0})).checks == []
    assert _verify(mine, moved).engine.sidecar.verified is False


def test_an_engine_that_was_replaced_meanwhile_keeps_its_own_sidecar(mine: Bundle, device: Device) -> None:
    engine = _build(mine, "text_encoder")
    sidecar = engine.path.with_suffix(".json")
    other = json.loads(sidecar.read_text()) | {"sha256": "0" * 64, "workspace": 1}
    sidecar.write_text(json.dumps(other))
    record_verification(engine, True, {})
    assert json.loads(sidecar.read_text()) == other
    sidecar.unlink()
    record_verification(engine, True, {})
    assert not sidecar.exists()


def test_an_engine_that_does_not_load_has_failed(mine: Bundle, device: Device) -> None:
    engine = _build(mine, "text_encoder")
    engine.path.write_bytes(b"damaged")
    found = _verify(mine, engine)
    assert found.engine.sidecar.verified is False
    assert [check.subject for check in found.checks] == ["names"] and "cannot be loaded" in found.checks[0].detail


def test_an_engine_that_is_tied_to_no_gpu_need_not_run_on_this_one(mine: Bundle, device: Device) -> None:
    def refused(package: Package, engine: BuiltEngine) -> Any:
        raise CheckpointError(f"{engine.path}: TensorRT for RTX cannot load it: not for this GPU")

    engine = _build(mine, "text_encoder")
    anywhere = replace(engine, sidecar=replace(engine.sidecar, gpu=None))
    found = _verify(mine, anywhere, open_session=refused)
    assert found.engine.sidecar.verified is None and found.checks == []
    assert found.engine.sidecar.verification["not_run"].endswith("not for this GPU")


def test_shapes_outside_the_profile_are_left_out(mine: Bundle, device: Device) -> None:
    narrow = BuildOptions(Profiles.parse(["text=2,2,4", "length=2,3,5"], 25))
    found = _verify(mine, _build(mine, "text_encoder", narrow))
    assert found.engine.sidecar.verified and found.checks[-1].cases == 5 * 3 * 2
    none = BuildOptions(Profiles.parse(["image=1,2,4"], 25))
    assert _verify(mine, _build(mine, "image_encoder", none)).engine.sidecar.verified


def test_nothing_here_can_run_it(mine: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, package = _build(mine, "text_encoder"), _package(mine)
    device.count = 0
    (found,) = verify_engines(mine, [engine], package, _no_reference)
    assert found.checks == [] and found.engine.sidecar.verified is None
    assert _written(engine)["verification"] == {"not_run": "this machine has no GPU that could run it"}
    monkeypatch.setattr("tcl.encoders.tensorrt.cuda.find_spec", lambda name: None)
    (found,) = verify_engines(mine, [engine], package, _no_reference)
    assert "cuda-python is not installed" in found.engine.sidecar.verification["not_run"]


def test_nothing_to_compare_it_with(
    mine: Bundle, device: Device, tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = build_bundle(tiny_model, tmp_path / "half", ["fp16"], matcher=False, check=False)
    fake_tensorrt.install_for(half.folder, monkeypatch)
    found = _verify(half, _build(half, "text_encoder"))
    assert found.engine.sidecar.verified is None
    assert found.engine.sidecar.verification == {"not_run": "the bundle has no fp32 graphs to compare them with"}
    monkeypatch.setattr("export.verify.engines.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="onnxruntime is not installed"):
        onnx_reference(mine)


def test_graphs_that_were_not_verified_prove_nothing(mine: Bundle, device: Device) -> None:
    path = mine.folder / "bundle.json"
    manifest = json.loads(path.read_text()) | {"verified": False}
    manifest["graphs"]["matcher"]["precisions"]["fp32"]["verified"] = False
    path.write_text(json.dumps(manifest))
    bundle = read_bundle(mine.folder)
    found = _verify(bundle, _build(bundle, "text_encoder"))
    assert found.engine.sidecar.verified is None and found.checks == []
    reason = "the fp32 graphs to compare them with are not verified themselves"
    assert found.engine.sidecar.verification == {"not_run": reason}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_a_real_engine(every_precision: Bundle, tmp_path: Path, precision: str) -> None:
    bundle = read_bundle(Path(shutil.copytree(every_precision.folder, tmp_path / "bundle")))
    package = open_package()
    built = build_engines(bundle, [precision], BuildOptions(Profiles.parse([], 25)), package)
    for engine, checks in verify_engines(bundle, built, package, lambda: onnx_reference(bundle), bounds=FLOAT8):
        assert engine.sidecar.verified, (engine.sidecar.verification, checks)
