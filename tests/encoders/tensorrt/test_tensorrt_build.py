"""Every graph really becomes an engine: TensorRT for RTX builds without a GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.bundle import build_bundle
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import PRECISIONS
from tcl.encoders.tensorrt.build import BuildOptions, Phases, build_plan, check_options
from tcl.encoders.tensorrt.cuda import Gpu
from tcl.encoders.tensorrt.engines import build_engine, build_engines
from tcl.encoders.tensorrt.package import Messages, Package, one_line, open_package
from tcl.encoders.tensorrt.profiles import Profiles
from tcl.errors import CheckpointError, MissingExtraError, UsageError
from tcl.files.cache import cache_folder
from tcl.models.heads import Task
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tests.conftest import CAPTIONS, make_tiny_model

OPTIONS = BuildOptions(Profiles.parse([], 25))
TASKS: tuple[Task, ...] = ("entailment", "nlvr2", "text_assignment", "vqa")


@pytest.fixture(scope="module")
def package() -> Package:
    pytest.importorskip("tensorrt_rtx")
    return open_package("rtx")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def static(tiny_model: TCL, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In all precisions; the ranges of int8 are in the graphs. Not verified, which takes longer than all engines."""
    target = tmp_path_factory.mktemp("static") / "bundle"
    return build_bundle(tiny_model, target, PRECISIONS, check=False, images=images, texts=CAPTIONS, static=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_in_every_precision(package: Package, static: Bundle, precision: str) -> None:
    shown: list[tuple[str, str, float]] = []
    built = build_engines(
        static, [precision], OPTIONS, package, lambda name: lambda phase, share: shown.append((name, phase, share))
    )
    assert [engine.sidecar.graph for engine in built] == list(static.graphs)
    for engine in built:
        assert engine.new and engine.path.name == f"{engine.sidecar.graph}.{precision}.engine"
        assert engine.path.parent == static.folder / "engines" / f"no-gpu-rtx{package.version}"
        assert engine.read()[4:8] == bytes(4) and engine.path.stat().st_size > 50_000
    matcher = next(engine.sidecar for engine in built if engine.sidecar.graph == "matcher")
    assert matcher.inputs["input_ids"] == ("batch", "sequence")
    assert matcher.inputs["image_key_values"][0] == "images"
    for graph in static.graphs:
        shares = [share for name, _, share in shown if name == f"{graph} {precision}"]
        assert len(shares) > 20 and shares == sorted(shares) and 0.5 < shares[-1] <= 1


@pytest.mark.parametrize("task", TASKS)
def test_heads_are_parsed(
    package: Package, fine_tuned: Callable[[Task], TaskModel], tmp_path: Path, task: Task
) -> None:
    bundle = build_bundle(fine_tuned(task), tmp_path / "bundle", ["fp16"], matcher=False, check=False)
    trt = package.trt
    with package.messages.kept() as messages:
        network = trt.Builder(package.logger).create_network(0)
        parser = trt.OnnxParser(network, package.logger)
        assert parser.parse_from_file(str(bundle.graph_file(task, "fp16"))), one_line(messages)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
def test_heads(
    package: Package,
    fine_tuned: Callable[[Task], TaskModel],
    images: list[str],
    tmp_path: Path,
    task: Task,
    precision: str,
) -> None:
    model, folder = fine_tuned(task), tmp_path / "bundle"
    bundle = build_bundle(
        model, folder, [precision], matcher=False, check=False, images=images, texts=CAPTIONS, static=True
    )
    assert build_engine(bundle, task, precision, OPTIONS, package).new


@pytest.mark.slow
def test_a_base_model(package: Package, tmp_path: Path) -> None:
    size = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    model = make_tiny_model(
        image_encoder="vit_base_patch16_224",
        image_encoder_args=size,
        image_size=256,
        text_encoder_args={},
        fusion_layer=6,
        embed_dim=256,
    )
    bundle = build_bundle(model, tmp_path / "base", ["fp16"], check=False)
    built = build_engines(bundle, ["fp16"], OPTIONS, package)
    assert [engine.sidecar.graph for engine in built] == list(bundle.graphs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("length=1,25,41", "the graph cannot do all shapes of the profile"),
        ("length=1,60,80", "the graph cannot do all shapes of the profile"),
    ],
)
def test_a_profile_beyond_the_model(package: Package, static: Bundle, text: str, message: str) -> None:
    options = BuildOptions(Profiles.parse([text], 25))
    with pytest.raises(UsageError, match=message) as caught:
        build_engine(static, "text_encoder", "fp32", options, package)
    assert "--profile length" in str(caught.value.hint)


def test_a_workspace_that_is_too_small(package: Package, static: Bundle) -> None:
    with pytest.raises(UsageError, match="no kernel fits into the workspace") as caught:
        build_engine(static, "image_key_values", "fp16", BuildOptions(OPTIONS.profiles, workspace=1024), package)
    assert "--workspace" in str(caught.value.hint)


def test_a_float32_engine_keeps_float32(package: Package, static: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    original = package.trt.IBuilderConfig.clear_flag
    monkeypatch.setattr(
        package.trt.IBuilderConfig, "clear_flag", lambda self, flag: (cleared.append(flag.name), original(self, flag))
    )
    for precision in ("fp32", "fp16"):
        build_plan(package, static.graph_file("image_key_values", precision), precision, OPTIONS)
    assert cleared == ["TF32"]


def test_operators_that_tensorrt_lacks_are_named(package: Package, every_precision: Bundle) -> None:
    path = every_precision.graph_file("image_encoder", "int8")
    with pytest.raises(CheckpointError, match=r"does not support node \S+ \(DynamicQuantizeLinear\) and \d+ more"):
        build_plan(package, path, "int8", OPTIONS)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a"])
def test_a_file_that_is_no_graph(package: Package, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"broken\.onnx: (TensorRT for RTX .* cannot read it|holds no graph)"
    ) as caught:
        build_plan(package, path, "fp32", OPTIONS)
    assert "\n" not in caught.value.message


def test_an_exception_in_the_progress_cancels_the_build(package: Package, static: Bundle) -> None:
    def broken(phase: str, share: float) -> None:
        raise ConnectionError("the terminal is gone")

    with pytest.raises(ConnectionError, match="the terminal is gone"):
        build_plan(package, static.graph_file("image_key_values", "fp16"), "fp16", OPTIONS, broken)


def test_ctrl_c_cancels_the_build(package: Package, static: Bundle) -> None:
    seen = []

    def press(phase: str, share: float) -> None:
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(share)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_plan(package, static.graph_file("text_encoder", "fp32"), "fp32", OPTIONS, press)
    assert len(seen) < 20  # a whole build has some hundred steps
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["hardware_compatible", "version_compatible"])
def test_options_that_rtx_does_not_have(package: Package, name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: TensorRT for RTX"):
        check_options(package, BuildOptions(OPTIONS.profiles, **{name: True}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT for RTX says that it ignores some of this
@pytest.mark.parametrize(("version", "flags"), [("10.7.0", 1), ("11.4.0.106", 0)])
def test_what_only_tensorrt_for_data_centres_is_asked(
    package: Package, static: Bundle, monkeypatch: pytest.MonkeyPatch, version: str, flags: int
) -> None:
    """The calls are made to TensorRT for RTX, which has them all; what comes of them is not seen here."""
    trt, seen, levels = package.trt, [], []
    create, build = trt.Builder.create_network, trt.Builder.build_serialized_network
    monkeypatch.setattr(trt.Builder, "create_network", lambda self, flags: (seen.append(flags), create(self, flags))[1])

    def built(self: Any, network: Any, config: Any) -> Any:
        levels.append(config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE))
        config.clear_flag(trt.BuilderFlag.VERSION_COMPATIBLE)  # for which it lacks a library
        return build(self, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", built)
    monkeypatch.setattr("tcl.encoders.tensorrt.build.current_gpu", lambda: Gpu("NVIDIA H200", "9.0", "13.0", "13.0"))
    posing = replace(package, flavour="tensorrt", version=version)
    options = BuildOptions(OPTIONS.profiles, hardware_compatible=True, version_compatible=True)
    path = static.graph_file("image_key_values", "fp16")
    assert build_plan(posing, path, "fp16", options).content
    timings = cache_folder() / "timings" / f"nvidia-h200-tensorrt{version}.bin"
    kept = timings.read_bytes()
    assert kept
    timings.write_bytes(b"damaged")
    assert build_plan(posing, path, "fp16", options).content
    assert timings.read_bytes() == kept
    # On 10, a network is strongly typed because it is asked to be.
    assert seen == [flags, flags] and levels == [True, True]


def test_tensorrt_for_data_centres_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.encoders.tensorrt.build.current_gpu", lambda: None)
    package = Package("tensorrt", None, "11.4.0.106", None, Messages())
    with pytest.raises(UsageError, match=r"TensorRT 11\.4\.0\.106 builds engines on the GPU") as caught:
        check_options(package, OPTIONS)
    assert "pip install '.[trt-rtx]'" in str(caught.value.hint)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        open_package()
    assert caught.value.message == "this needs tensorrt or tensorrt_rtx, which is not installed"
    assert "pip install '.[trt]'" in str(caught.value.hint)
    assert "'.[trt-rtx]'" in str(caught.value.hint)
    with pytest.raises(MissingExtraError) as caught:
        open_package("rtx")
    assert caught.value.hint == "pip install '.[trt-rtx]'"


def test_phases_inside_one_another() -> None:
    shares: list[float] = []
    phases = Phases(lambda name, share: shares.append(round(share, 3)))
    phases.start("all", None, 2)
    phases.start("first", "all", 4)
    phases.step("first", 1)
    phases.step("first", 3)
    phases.finish("first")
    phases.step("all", 0)
    phases.start("second", "all", 1)
    phases.start("inner", "second", 2)
    phases.step("inner", 0)
    phases.start("again", None, 100)  # a builder that starts over
    phases.step("again", 0)
    phases.step("unknown", 0)
    phases.step("all", 1)
    assert shares == [0.25, 0.5, 0.5, 0.75, 0.75, 0.75, 1.0]


def test_messages_are_one_line() -> None:
    echo = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime"
    telling = "IBuilder::build: Error Code 4: no profile (in full. In validate at /src/network.cpp:40)\nand more"
    assert one_line([echo, telling]) == "IBuilder::build: Error Code 4: no profile (in full."
    assert one_line([echo]) == echo
    assert one_line([]) == "it does not say why"


@pytest.mark.parametrize(
    ("gpu", "options", "message"),
    [
        (Gpu("NVIDIA A100", "8.0", "13.0", "13.0"), OPTIONS, "fp8: NVIDIA A100 has no 8-bit floats"),
        (Gpu("NVIDIA L4", "8.9", "13.0", "13.0"), replace(OPTIONS, hardware_compatible=True), "--hardware-compatible"),
    ],
)
def test_8_bit_floats_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, options: BuildOptions, message: str
) -> None:
    monkeypatch.setattr("tcl.encoders.tensorrt.build.current_gpu", lambda: gpu)
    package = Package("tensorrt", None, "11.4.0.106", None, Messages())
    with pytest.raises(UsageError, match=message):
        check_options(package, options, ["fp16", "fp8"])
    assert check_options(package, options, ["fp16"]) == gpu


def test_8_bit_floats_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("tensorrt", None, "11.4.0.106", None, Messages())
    for capability in ("8.9", "9.0", "10.0"):
        gpu = Gpu("a GPU", capability, "13.0", "13.0")
        monkeypatch.setattr("tcl.encoders.tensorrt.build.current_gpu", lambda gpu=gpu: gpu)
        assert check_options(package, OPTIONS, ["fp8"]) == gpu
