"""`tcl bench` measures what it says, keeps it for this machine, and `--backend auto` follows it."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bench import worker as bench_worker
from export.bench.bench import BenchPlan, bench, samples
from export.bench.chart import draw_chart, write_chart
from export.bench.ways import find_bundle_of, find_run_of, find_ways
from export.bench.worker import Way, graph_flops
from tcl.encoders import fastest as bench_record
from tcl.encoders.bundle import Bundle
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.open import open_encoder
from tcl.encoders.torch import TorchEncoder
from tcl.errors import DataError, MissingExtraError, UsageError
from tcl.files.cache import CacheError
from tcl.models.tcl import TCL
from tcl.weights.find import ModelSource

PLAN = BenchPlan(batch_sizes=(1, 3), seconds=0.02)
# One image of the tiny model: patches, two layers of 17 tokens, projection. The last layer of a graph goes on with the
# class token alone, once it has queries, keys and values of all.
PATCHES = 16 * 3 * 8 * 8 * 32
PROJECTION = 32 * 16


def _layer(queries: int, keys: int) -> int:
    """Multiplications of a layer of width 32 whose MLP is four times as wide."""
    return keys * 3 * 32 * 32 + queries * (32 * 32 + 2 * 32 * 128) + 2 * queries * keys * 32


@pytest.fixture(scope="module")
def measured(every_precision: Bundle, tiny_model_folder: Path) -> dict[str, Any]:
    """Torch and the graphs of one model, really measured; do not change it."""
    model = ModelSource("model", str(tiny_model_folder))
    told: list[str] = []
    ways = [way for way in find_ways(model, every_precision, "cpu") if way.precision in ("fp32", "int8")]
    record = bench(ways, PLAN, progress=told.append)
    assert len(told) == PLAN.steps(len(ways))
    return json.loads(json.dumps(record, allow_nan=False))


@pytest.fixture
def place(
    measured: dict[str, Any],
    every_precision: Bundle,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """`place(torch=1, onnx=5)` is a folder with a run, a bundle, and a result in which these ways are so fast."""
    shutil.copytree(tiny_model_folder, tmp_path / "runs" / "tiny" / "model")
    shutil.copytree(every_precision.folder, tmp_path / "exports" / "tiny")
    monkeypatch.chdir(tmp_path)

    def make(change: Callable[[dict[str, Any]], object] = lambda record: None, **rates: float) -> Path:
        record = copy.deepcopy(measured)
        for result in record["results"]:
            rate = rates.get(f"{result['backend']}_{result['precision']}", 1.0)
            for each in result["throughput"]:
                each["median"] = rate
            result["latency"]["text"]["median"] = 1 / rate
            if result["bundle"] is not None:
                result["bundle"] = result["model"] = str(tmp_path / "exports" / "tiny")
        change(record)
        return bench_record.save(record)

    return make


def test_ways(every_precision: Bundle, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSource("model", str(tiny_model_folder))
    monkeypatch.setattr("export.bench.ways.gpus", lambda: [])
    assert [way.name for way in find_ways(model, every_precision)] == [
        "torch-cpu fp32",
        "onnx-cpu fp32",
        "onnx-cpu int8",
        "onnx-cpu fp16",
    ]
    assert [way.name for way in find_ways(model, None, compiled=True)] == ["torch-cpu fp32", "torch-compiled-cpu fp32"]
    assert next(way.name for way in find_ways(None, every_precision)) == "onnx-cpu fp32"
    with pytest.raises(UsageError, match="no NVIDIA GPU"):
        find_ways(model, every_precision, "cuda")
    with pytest.raises(UsageError, match="nothing on this machine runs its precisions, fp8") as caught:
        find_ways(None, replace(every_precision, precisions=("fp8",)))
    assert caught.value.hint == "export the model again with --precision fp32"
    monkeypatch.setattr("export.bench.ways.gpus", lambda: ["a GPU"])
    names = [way.name for way in find_ways(model, every_precision, "cuda")]
    assert names[0] == "torch-cpu fp32", "the reference stays"
    assert {"torch-cuda bf16", "torch-compiled-cuda fp16", "onnx-cuda fp16"} < set(names)
    assert not any(name.startswith("onnx-trt") for name in names)
    monkeypatch.setattr("export.bench.ways.find_spec", lambda name: True)
    names = [way.name for way in find_ways(model, every_precision, "cuda")]
    assert [name for name in names if name.startswith("onnx-trt")] == ["onnx-trt-cuda fp16", "onnx-trt-cuda fp32"]
    monkeypatch.setattr("export.bench.ways.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="onnxruntime"):
        find_ways(model, every_precision)


def test_what_is_measured(measured: dict[str, Any], tiny_model: TCL) -> None:
    assert measured["model_hash"] == tiny_model.model_hash
    assert measured["reference"] == "torch-cpu fp32"
    assert measured["image_size"] == [32, 32] and 5 < measured["tokens"] <= 25
    assert [result["precision"] for result in measured["results"]] == ["fp32", "fp32", "int8"]
    for result in measured["results"]:
        assert result["error"] is None and result["verified"], result
        points = [(each["kind"], each["batch"]) for each in result["throughput"]]
        assert points == [("image", 1), ("image", 3), ("text", 1), ("text", 3)]
        for each in (*result["throughput"], *result["latency"].values()):
            assert 0 < each["low"] <= each["median"] <= each["high"]
        assert result["share_of_peak"]["image"] > 0 and 30e6 < result["memory"] < 8e9
    cosines = [result["cosine"]["text"]["min"] for result in measured["results"]]
    assert cosines[0] == pytest.approx(1) and cosines[1] > 0.999999 > cosines[2] > 0.99
    torch_memory, onnx_memory = (measured["results"][row]["memory"] for row in (0, 1))
    assert onnx_memory < torch_memory / 2, "each way has a process of its own, and ONNX Runtime's has no torch"
    assert measured["peaks"]["cpu"]["fp32"] > 1e8


def test_operations_are_those_of_the_matrix_products(measured: dict[str, Any], every_precision: Bundle) -> None:
    whole = PATCHES + 2 * _layer(17, 17) + PROJECTION
    assert measured["flops"]["image"] == pytest.approx(2 * whole, rel=0.01)
    pixels = {"pixel_values": np.zeros((1, 3, 32, 32), np.uint8)}
    exported = PATCHES + _layer(17, 17) + _layer(1, 17) + PROJECTION
    for precision in ("fp32", "int8"):
        found = graph_flops(every_precision.folder, "image_encoder", precision, pixels)
        assert found == pytest.approx(2 * exported, rel=0.01)


def test_a_way_that_fails_leaves_the_others(bundle: Bundle, tmp_path: Path) -> None:
    folder = str(bundle.folder)
    ways = [Way("onnx", "cpu", "fp32", folder, folder), Way("onnx", "cpu", "int8", folder, folder)]
    record = bench(ways, BenchPlan((2,), 0.01), verified=lambda precision: False)
    good, bad = record["results"]
    assert good["error"] is None and len(good["throughput"]) == 2
    assert good["verified"] is False, "the bundle was not"
    assert "has no int8 graphs" in bad["error"] and bad["throughput"] == [] and not bad["verified"]
    with pytest.raises(Exception, match="cannot be measured"):
        bench(ways[1:], BenchPlan((2,), 0.01))


def test_a_process_that_is_killed_leaves_the_others(bundle: Bundle) -> None:
    folder = str(bundle.folder)
    ways = [Way("onnx", "cpu", "fp32", folder, folder), Way("onnx", "cpu", "fp32", folder + "/", folder)]
    killed: list[int] = []

    def kill_second(step: str) -> None:
        children = multiprocessing.active_children()
        if not killed and step.endswith("images, 2 at once"):
            last = max(children, key=lambda child: child.pid or 0)
            os.kill(last.pid or 0, signal.SIGKILL)
            killed.append(last.pid or 0)

    good, bad = bench(ways, BenchPlan((2,), 0.01), progress=kill_second)["results"]
    assert killed and good["error"] is None and good["latency"]["text"]["median"] > 0
    assert "its process was killed" in bad["error"] and not bad["verified"]


def test_errors_that_cannot_be_pickled_arrive_as_text() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert bench_worker.attempt(fail, MissingExtraError("onnxruntime", "onnx")) == (
        None,
        "this needs onnxruntime, which is not installed",
    )
    assert bench_worker.attempt(fail, ValueError("a\n b")) == (None, "ValueError: a b")
    assert bench_worker.attempt(len, "abc") == (3, None)


@pytest.mark.slow
def test_compiled_torch_computes_the_same_vectors(tiny_model: TCL) -> None:
    compiled, eager = TorchEncoder(tiny_model, compiled=True), TorchEncoder(tiny_model)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    texts = tiny_model.processor.texts(["a small red circle", "a star"])
    np.testing.assert_allclose(compiled.encode_image(pixels), eager.encode_image(pixels), atol=1e-5)
    np.testing.assert_allclose(compiled.encode_text(*texts), eager.encode_text(*texts), atol=1e-5)
    assert (compiled.backend, eager.backend) == ("torch-compiled-cpu", "torch-cpu")


class _Full:
    """An encoder whose memory holds no more than two inputs."""

    lanes, processor = 1, None

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        if len(pixels) > 2:
            raise MemoryError
        return np.zeros((len(pixels), 4), np.float32)


def test_a_batch_that_is_too_large_is_left_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way("onnx", "cpu", "fp32", str(bundle.folder), str(bundle.folder))
    arrays = {"image": (np.zeros((1, 3, 4, 4), np.uint8),)}
    opened = bench_worker._Opened(way, _Full(), arrays, set(), 0)  # type: ignore[arg-type]
    monkeypatch.setattr(bench_worker, "_opened", opened, raising=False)
    assert bench_worker.take_turn("image", 3, 0.001) is None
    rate, seconds = bench_worker.take_turn("image", 2, 0.01) or (0.0, 0.0)
    assert rate > 0 and seconds >= 0.01


def test_a_bundle_of_another_model_is_refused(bundle: Bundle, copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps(manifest | {"model_hash": "f" * 64}))
    ways = [Way("onnx", "cpu", "fp32", str(folder), str(folder)) for folder in (bundle.folder, copied)]
    with pytest.raises(UsageError, match="is of model ffffffffffff, not of"):
        bench(ways, PLAN)


def test_samples(tmp_path: Path) -> None:
    images, texts = samples(None)
    assert len(images) == len(texts) == 32 and images[0].startswith("scenes:val")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image can be read"):
        samples(str(tmp_path))
    with pytest.raises(UsageError):
        samples(str(tmp_path / "nowhere"))


def test_the_picture(measured: dict[str, Any], tmp_path: Path) -> None:
    picture = draw_chart(measured)
    drawn = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= drawn, "a colour for each way"
    write_chart(tmp_path / "b.png", measured)
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write_chart(tmp_path / "file" / "b.png", measured)


def test_auto_takes_the_fastest(place: Callable[..., Path]) -> None:
    assert isinstance(open_encoder(), TorchEncoder)
    place(torch_fp32=1, onnx_fp32=9, onnx_int8=20)
    chosen = open_encoder()
    assert isinstance(chosen, OnnxEncoder) and chosen.precision == "fp32", "int8 loses more than rounding"
    assert isinstance(open_encoder(backend="torch"), TorchEncoder)
    assert open_encoder(precision="int8").precision == "int8"
    place(torch_fp32=9, onnx_fp32=1)
    assert isinstance(open_encoder(), TorchEncoder)
    assert isinstance(open_encoder("exports/tiny"), OnnxEncoder), "a bundle stays this bundle"


def test_single_texts_and_many_images_differ(place: Callable[..., Path]) -> None:
    def slow_alone(record: dict[str, Any]) -> None:
        record["results"][1]["latency"]["text"]["median"] = 99.0

    place(slow_alone, torch_fp32=1, onnx_fp32=9)
    assert isinstance(open_encoder(lanes=4), OnnxEncoder)
    assert isinstance(open_encoder(), TorchEncoder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: [result.update(verified=False) for result in record["results"]],
        lambda record: [result.update(error="gone") for result in record["results"]],
        lambda record: record["machine"].update(cores=999),
        lambda record: record["machine"]["versions"].update(onnxruntime="0.1"),
        lambda record: record.update(format_version=0),
        lambda record: record.update(results=None),
        lambda record: record["results"][1].pop("latency"),
    ],
)
def test_results_that_do_not_count(place: Callable[..., Path], damage: Callable[[dict[str, Any]], object]) -> None:
    place(damage, onnx_fp32=9)
    assert isinstance(open_encoder(), TorchEncoder)


def test_a_damaged_file_and_a_bundle_that_changed(place: Callable[..., Path]) -> None:
    kept = place(onnx_fp32=9)
    manifest = Path("exports/tiny/bundle.json")
    values = json.loads(manifest.read_text())
    failed = json.loads(json.dumps(values["graphs"]).replace('"verified": true', '"verified": false'))
    only_images = {"image_encoder": values["graphs"]["image_encoder"]}
    for changed in ({"model_hash": "0" * 64}, {"graphs": failed}, {"graphs": only_images}):
        manifest.write_text(json.dumps(values | changed))
        assert isinstance(open_encoder(), TorchEncoder), changed
    shutil.rmtree("exports")
    assert isinstance(open_encoder(), TorchEncoder)
    kept.write_text(kept.read_text()[:100])
    assert isinstance(open_encoder(), TorchEncoder)


def test_a_cache_that_cannot_be_written(measured: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot write to the cache folder"):
        bench_record.save(measured)


def test_sides_of_one_model_find_each_other(place: Callable[..., Path], tiny_model: TCL) -> None:
    assert find_bundle_of(tiny_model.model_hash) == Path("exports/tiny")
    assert find_run_of(tiny_model.model_hash) == Path("runs/tiny/model")
    assert find_bundle_of("other") is None and find_run_of("other") is None
