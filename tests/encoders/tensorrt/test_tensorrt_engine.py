"""Engines on disk: what is written beside them, when they fit, and what never happens to them."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tcl.encoders.bundle import Bundle, read_bundle
from tcl.encoders.tensorrt import engines as engine_build
from tcl.encoders.tensorrt.build import BuildOptions, SerializedEngine
from tcl.encoders.tensorrt.cuda import Gpu
from tcl.encoders.tensorrt.engine import BuiltEngine, Sidecar, engines_of, find_engine, mismatch
from tcl.encoders.tensorrt.engines import build_engine, build_engines
from tcl.encoders.tensorrt.package import Messages, Package, open_package
from tcl.encoders.tensorrt.profiles import Profiles
from tcl.errors import CheckpointError, TclError, UsageError

OPTIONS = BuildOptions(Profiles.parse([], 25))
GRAPH = "image_key_values"  # the smallest
H200 = Gpu("NVIDIA H200", "9.0", "13.0", "13.0")
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", "13.0", "13.0")
TRT11 = Package("tensorrt", None, "11.4.0.106", None, Messages())


@pytest.fixture(scope="module")
def package() -> Package:
    pytest.importorskip("tensorrt_rtx")
    return open_package("rtx")


@pytest.fixture(scope="module")
def built_folder(bundle: Bundle, package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(bundle.folder, tmp_path_factory.mktemp("engines") / "bundle"))
    build_engine(read_bundle(folder), GRAPH, "fp32", OPTIONS, package)
    return folder


@pytest.fixture
def mine(built_folder: Path, tmp_path: Path) -> Bundle:
    """A bundle with one engine, to be damaged."""
    return read_bundle(Path(shutil.copytree(built_folder, tmp_path / "mine")))


def _engine(bundle: Bundle) -> BuiltEngine:
    (engine,) = engines_of(bundle, GRAPH, "fp32")
    return engine


def _files(bundle: Bundle) -> list[str]:
    return sorted(path.name for path in (bundle.folder / "engines").rglob("*") if path.is_file())


def _no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "build_plan", lambda *args: pytest.fail("built for nothing"))


def test_the_sidecar_says_what_the_engine_is(mine: Bundle, package: Package) -> None:
    engine = _engine(mine)
    values = json.loads(engine.path.with_suffix(".json").read_text())
    assert (values["graph"], values["precision"]) == (GRAPH, "fp32")
    assert values["model_hash"] == mine.model_hash
    assert values["onnx"] == {"image_key_values.onnx": mine.hashes["image_key_values.onnx"]}
    assert (values["flavour"], values["version"], values["gpu"]) == ("rtx", package.version, None)
    assert values["profiles"]["image"] == [1, 64, 256]
    assert values["inputs"] == {"image_tokens": ["batch", 17, 32]}
    assert find_engine(mine, GRAPH, "fp32", package, None).path == engine.path
    assert find_engine(mine, GRAPH, "fp32", package, H200).path == engine.path  # tied to no GPU


def test_an_engine_that_is_there_is_kept(mine: Bundle, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_build(monkeypatch)
    assert not build_engine(mine, GRAPH, "fp32", OPTIONS, package).new


def test_other_options_build_anew(mine: Bundle, package: Package) -> None:
    options = BuildOptions(Profiles.parse(["image=1,2,4"], 25))
    before = _engine(mine).sidecar.sha256
    assert build_engine(mine, GRAPH, "fp32", options, package).new
    after = _engine(mine).sidecar
    assert after.options == options and after.sha256 != before
    assert len(_files(mine)) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_corrupt_engine(mine: Bundle, package: Package, damage: Any) -> None:
    path = _engine(mine).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"image_key_values\.fp32\.engine: damaged"):
        _engine(mine).read()
    assert build_engine(mine, GRAPH, "fp32", OPTIONS, package).new
    assert _engine(mine).read()


def test_an_engine_that_is_gone(mine: Bundle) -> None:
    engine = _engine(mine)
    engine.path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        engine.read()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"graph": 3}', '{"format_version": 2}'])
def test_a_damaged_sidecar_counts_as_none(mine: Bundle, package: Package, content: str) -> None:
    _engine(mine).path.with_suffix(".json").write_text(content)
    assert engines_of(mine, GRAPH, "fp32") == []
    with pytest.raises(CheckpointError, match="has no engine of image_key_values fp32") as caught:
        find_engine(mine, GRAPH, "fp32", package, None)
    assert caught.value.hint == f"tcl export --trt --model {mine.folder} --precision fp32"


@pytest.mark.parametrize("profiles", [{}, {"image": [1, 2]}, {"text": [1, 2, 4]}])
def test_a_sidecar_whose_profile_is_not_that_of_its_inputs_counts_as_none(
    mine: Bundle, profiles: dict[str, list[int]]
) -> None:
    path = _engine(mine).path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"profiles": profiles}))
    assert engines_of(mine, GRAPH, "fp32") == []


def _sidecar(bundle: Bundle, **changes: Any) -> Sidecar:
    for_h200 = {"flavour": "tensorrt", "version": "11.4.0.106", "gpu": H200.name, "compute_capability": "9.0"}
    return replace(_engine(bundle).sidecar, **{**for_h200, **changes})


@pytest.mark.parametrize(
    ("changes", "package_version", "gpu", "reason"),
    [
        ({}, "11.4.0.106", H200, None),
        ({"gpu": A100.name, "compute_capability": "8.0"}, "11.4.0.106", H200, "was built for NVIDIA A100"),
        ({"compute_capability": "8.9"}, "11.4.0.106", H200, "was built for"),
        ({"hardware_compatible": True}, "11.4.0.106", A100, None),
        ({"hardware_compatible": True}, "11.4.0.106", Gpu("Tesla T4", "7.5", "", ""), "needs a GPU from Ampere on"),
        ({"version": "10.7.0"}, "11.4.0.106", H200, r"was built by TensorRT 10\.7\.0, and here is TensorRT 11\.4"),
        ({"version": "11.4.0.107"}, "11.4.0.106", H200, "was built by"),
        ({"version": "10.7.0", "version_compatible": True}, "11.4.0.106", H200, None),
        ({"version": "11.5.0", "version_compatible": True}, "11.4.0.106", H200, "was built by"),
        ({"version": "10.7.0", "version_compatible": True}, "12.0.0", H200, "was built by"),
        ({"flavour": "rtx", "version": "1.7.1.116"}, "11.4.0.106", H200, "was built by TensorRT for RTX"),
        ({"platform": "Windows AMD64"}, "11.4.0.106", H200, "was built on Windows"),
        ({"model_hash": "other"}, "11.4.0.106", H200, "is of another model"),
        ({"onnx": {"image_key_values.onnx": "other"}}, "11.4.0.106", H200, "was built from another ONNX file"),
    ],
)
def test_when_an_engine_fits(
    mine: Bundle, changes: dict[str, Any], package_version: str, gpu: Gpu, reason: str | None
) -> None:
    found = mismatch(_sidecar(mine, **changes), mine, replace(TRT11, version=package_version), gpu)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(found)


def test_an_engine_of_another_machine_is_named(mine: Bundle) -> None:
    with pytest.raises(CheckpointError, match=r"engine: was built by TensorRT for RTX .* here is TensorRT 11"):
        find_engine(mine, GRAPH, "fp32", TRT11, H200)


def test_folders_say_what_engines_are_for(mine: Bundle) -> None:
    assert _sidecar(mine).folder == "nvidia-h200-sm90-tensorrt11.4.0.106"
    wide = _sidecar(mine, hardware_compatible=True, version_compatible=True)
    assert wide.folder == "nvidia-h200-sm90-tensorrt11.4.0.106-hardware-compatible-version-compatible"


def test_an_onnx_file_edited_by_hand(mine: Bundle, package: Package) -> None:
    path = mine.folder / "image_key_values.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="is not the file that was exported"):
        build_engine(mine, GRAPH, "fp32", OPTIONS, package)


def test_precisions_that_cannot_be_built(mine: Bundle, every_precision: Bundle, package: Package) -> None:
    with pytest.raises(UsageError, match="has no fp16 graphs"):
        build_engines(mine, ["fp16"], OPTIONS, package)
    with pytest.raises(UsageError, match="finds its ranges for every batch") as caught:
        build_engines(every_precision, ["fp32", "int8"], OPTIONS, package)
    assert "--int8 static --calibrate" in str(caught.value.hint)
    assert not (every_precision.folder / "engines").exists()  # refused before the first was built


def test_an_interrupted_build_leaves_nothing(
    bundle: Bundle, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")))

    def press(phase: str, share: float) -> None:
        os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        build_engine(mine, GRAPH, "fp32", OPTIONS, package, press)
    assert _files(mine) == []


def test_killed_between_engine_and_sidecar(mine: Bundle, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build.json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_engine(mine, GRAPH, "fp32", BuildOptions(OPTIONS.profiles, workspace=1 << 30), package)
    assert engines_of(mine, GRAPH, "fp32") == []  # never the old description beside the new engine


def test_two_builds_at_once_are_one(
    bundle: Bundle, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")))
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(build_engine, mine, GRAPH, "fp32", OPTIONS, package) for _ in range(2)]
    assert sorted(run.result().new for run in runs) == [False, True]
    assert _files(mine) == ["image_key_values.fp32.engine", "image_key_values.fp32.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(bundle: Bundle, package: Package, tmp_path: Path) -> None:
    mine = read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")))
    mine.folder.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written: Permission denied"):
        build_engine(mine, GRAPH, "fp32", OPTIONS, package)


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [(30, UsageError, "cannot be written: Read-only file system"), (28, TclError, "not enough disk space")],
)
def test_a_folder_that_cannot_be_written(
    bundle: Bundle,
    package: Package,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[TclError],
    message: str,
) -> None:
    mine = read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")))

    def refused(*args: Any) -> SerializedEngine:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(engine_build, "build_plan", refused)
    with pytest.raises(kind, match=message):
        build_engine(mine, GRAPH, "fp32", OPTIONS, package)
    assert _files(mine) == []


def test_a_file_in_place_of_the_folder(bundle: Bundle, package: Package, tmp_path: Path) -> None:
    mine = read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")))
    (mine.folder / "engines").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        build_engine(mine, GRAPH, "fp32", OPTIONS, package)
