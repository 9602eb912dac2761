"""The pipeline: what shares a batch, how many run at once, memory that does not suffice, and several devices."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.data.inputs.listing import list_inputs
from tcl.embedding.pipeline import LOOK_AHEAD_BATCHES, Reader, is_out_of_memory
from tcl.embedding.run import embed
from tcl.embedding.workers import Workers
from tcl.errors import DataError, TclError, UsageError
from tcl.machine.devices import parse_devices

WORDS = ("a", "small", "red", "circle", "left", "of", "blue", "square", "with", "two", "yellow", "triangles", "below")


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images") / "images", 100)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to 12 words in no order; some hold none."""
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, draw.integers(1, 13))) if row % 29 else "!!!" for row in range(300)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def files(folder: Path, stem: str) -> dict[str, bytes]:
    return {path.name.removeprefix(stem): path.read_bytes() for path in sorted(folder.glob(f"{stem}.*"))}


@pytest.mark.parametrize("source", ["images", "texts"])
def test_threads_and_lanes_change_nothing(
    source: str, request: pytest.FixtureRequest, processor: Any, tmp_path: Path
) -> None:
    inputs = list_inputs(str(request.getfixturevalue(source)))
    for lanes, workers in ((1, 1), (3, 2), (2, 7)):
        encoder = ProjectionEncoder(processor, lanes=lanes)
        embed(inputs, encoder, tmp_path / f"{lanes}{workers}.npy", batch_size=8, workers=workers)
    assert files(tmp_path, "11") == files(tmp_path, "32") == files(tmp_path, "27")


def test_rows_of_texts_are_in_order_whatever_shared_a_batch(texts: Path, processor: Any, tmp_path: Path) -> None:
    inputs, seen = list_inputs(str(texts)), []

    class Watching(ProjectionEncoder):
        def encode_text(self, input_ids: Any, attention_mask: Any) -> Any:
            seen.append(attention_mask.sum(axis=1))
            return super().encode_text(input_ids, attention_mask)

    report = embed(inputs, Watching(processor), tmp_path / "v.npy", batch_size=8)
    assert report.failed == 11 and set(report.rates) == {"tokenise", "encode", "write"}
    vectors = np.load(tmp_path / "v.npy")
    ids = [json.loads(line)["id"] for line in (tmp_path / "v.ids.jsonl").read_text().splitlines()]
    assert ids == [str(row) for row in range(1, 301) if (row - 1) % 29]
    alone = ProjectionEncoder(processor)
    for row in (0, 7, 150, len(ids) - 1):
        expected = alone.encode_text(*processor.texts([inputs.values[int(ids[row]) - 1]]))[0]
        np.testing.assert_allclose(vectors[row], expected, atol=1e-6)
    padded = sum(lengths.max() * len(lengths) for lengths in seen) / sum(lengths.sum() for lengths in seen)
    assert padded < 1.1  # in the order of the source it is 1.6
    errors = [json.loads(line)["id"] for line in (tmp_path / "v.errors.jsonl").read_text().splitlines()]
    assert errors == [str(row) for row in range(1, 301) if not (row - 1) % 29]


def test_as_many_calls_at_once_as_there_are_lanes(images: Path, processor: Any, tmp_path: Path) -> None:
    running, most = [0], [0]
    together = threading.Barrier(3)

    class Counting(ProjectionEncoder):
        def encode_image(self, pixel_values: Any) -> Any:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if most[0] < 3 or together.n_waiting:
                together.wait()
            running[0] -= 1
            return super().encode_image(pixel_values)

    embed(list_inputs(str(images)), Counting(processor, lanes=3), tmp_path / "v.npy", batch_size=8)
    assert most[0] == 3


def test_the_decoders_do_not_run_away(images: Path, processor: Any, tmp_path: Path) -> None:
    """However slow the encoder, only a few batches wait for it."""
    read: list[int] = []

    class Slow(ProjectionEncoder):
        def encode_image(self, pixel_values: Any) -> Any:
            time.sleep(0.02)
            read.append(decoded[0])
            return super().encode_image(pixel_values)

    decoded = [0]
    inputs = list_inputs(str(images))
    location = type(inputs).location

    def counted(self: Any, row: int) -> str:
        decoded[0] += 1
        return location(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(inputs), "location", counted)
        embed(inputs, Slow(processor), tmp_path / "v.npy", batch_size=8)
    # Each call sees at most its own batch, what waits behind it, and the one that is being decoded.
    assert all(count <= 8 * (number + 4) + 2 for number, count in enumerate(read)) and read[0] < 50


def test_lanes_share_what_is_prepared_ahead(images: Path, processor: Any, tmp_path: Path) -> None:
    started: list[int] = []
    read: list[int] = []

    class Slow(ProjectionEncoder):
        def encode_image(self, pixel_values: Any) -> Any:
            time.sleep(0.1)
            read.append(len(started))
            return super().encode_image(pixel_values)

    prepare = Reader._images

    def noted(self: Reader, batch: int) -> Any:
        started.append(batch)
        return prepare(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "_images", noted)
        embed(list_inputs(str(images)), Slow(processor, lanes=3), tmp_path / "v.npy", batch_size=8)
    assert read[0] <= 3 + LOOK_AHEAD_BATCHES


@pytest.mark.parametrize("source", ["images", "texts"])
def test_memory_that_does_not_suffice(
    source: str, request: pytest.FixtureRequest, processor: Any, tmp_path: Path
) -> None:
    inputs, said = list_inputs(str(request.getfixturevalue(source))), []
    embed(inputs, ProjectionEncoder(processor), tmp_path / "v.npy", batch_size=16)
    embed(inputs, ProjectionEncoder(processor, fits=5), tmp_path / "w.npy", batch_size=16, say=said.append)
    assert files(tmp_path, "v") == files(tmp_path, "w")
    assert len(said) == 1 and "out of memory with 16 inputs" in said[0] and "--batch-size" in said[0]
    with pytest.raises(TclError, match="out of memory with a single input"):
        embed(inputs, ProjectionEncoder(processor, fits=0), tmp_path / "x.npy")
    assert not list(tmp_path.glob("x.*"))


def test_what_out_of_memory_looks_like() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("[ONNXRuntimeError] : 6 : ... Failed to allocate memory for requested buffer"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    for said in (
        "CUDA error: out of memory",
        "CUDA failure 2: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling",
    ):
        assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_vectors_that_are_not_finite_are_no_vectors(images: Path, processor: Any, tmp_path: Path) -> None:
    class Overflowing(ProjectionEncoder):
        def encode_image(self, pixel_values: Any) -> Any:
            vectors = super().encode_image(pixel_values)
            vectors[3, 2] = np.nan
            return vectors

    report = embed(list_inputs(str(images)), Overflowing(processor), tmp_path / "v.npy", batch_size=50)
    assert (report.count, report.failed) == (97, 3)
    errors = [json.loads(line) for line in (tmp_path / "v.errors.jsonl").read_text().splitlines()]
    assert errors[0] == {"id": "3.png", "reason": "its vector is not finite"}


# --- several devices -----------------------------------------------------------------------------------------------


def make_encoder(processor: Any, log: Path, device: str) -> ProjectionEncoder:
    """In each process."""
    assert device == "cpu"
    return ProjectionEncoder(processor, log=log, seconds=0.01)


def make_dying(processor: Any, marker: Path, device: str) -> ProjectionEncoder:
    """The first process that gets here dies at its second batch."""
    mine = False
    try:
        marker.touch(exist_ok=False)
        mine = True
    except FileExistsError:
        pass

    class Dying(ProjectionEncoder):
        calls = 0

        def encode_image(self, pixel_values: Any) -> Any:
            self.calls += 1
            if mine and self.calls == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
            return super().encode_image(pixel_values)

    return Dying(processor)


def make_unequal(processor: Any, counter: Path, device: str) -> ProjectionEncoder:
    encoder = ProjectionEncoder(processor)
    try:
        counter.touch(exist_ok=False)
    except FileExistsError:
        encoder.precision = "fp16"
    return encoder


def make_failing(device: str) -> ProjectionEncoder:
    raise DataError("no weights here", hint="bring some")


def run(inputs: Any, out: Path, make: Any, devices: str = "cpu,cpu", **options: Any) -> Any:
    from contextlib import nullcontext

    from tcl.embedding.parts import Output
    from tcl.embedding.plan import Options
    from tcl.embedding.run import run_embedding

    progress: list[int] = []
    report = run_embedding(
        inputs,
        Output(out, **options),
        Options(batch_size=8, workers=1),
        make,
        parse_devices(devices),
        begin=lambda facts, done, state: nullcontext(progress.append),
    )
    assert sum(progress) == len(inputs) - report.resumed
    return report


def test_two_processes_write_the_same_bytes(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs, log = list_inputs(str(images)), tmp_path / "log"
    embed(inputs, ProjectionEncoder(processor), tmp_path / "v.npy", batch_size=8)
    report = run(inputs, tmp_path / "w.npy", partial(make_encoder, processor, log))
    assert files(tmp_path, "v") == files(tmp_path, "w")
    assert log.stat().st_size == 13
    assert [stage["threads"] for stage in report.stages] == [2, 2, 2]


def test_a_process_that_dies(images: Path, processor: Any, tmp_path: Path) -> None:
    """The others do the rest; what it had claimed is left to the next call."""
    inputs = list_inputs(str(images))
    embed(inputs, ProjectionEncoder(processor), tmp_path / "v.npy", batch_size=8)
    make = partial(make_dying, processor, tmp_path / "marker")
    with pytest.raises(TclError, match="the process of cpu was killed") as caught:
        run(inputs, tmp_path / "w.npy", make)
    assert "the same command goes on" in str(caught.value.hint) and not (tmp_path / "w.npy").exists()
    report = run(inputs, tmp_path / "w.npy", make, "cpu")
    assert report.resumed >= 8 * 8
    assert files(tmp_path, "v") == files(tmp_path, "w")


def test_processes_that_cannot_start(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs = list_inputs(str(images))
    with pytest.raises(DataError, match="no weights here"):
        run(inputs, tmp_path / "v.npy", make_failing)
    with pytest.raises(UsageError, match="do not compute alike"):
        run(inputs, tmp_path / "v.npy", partial(make_unequal, processor, tmp_path / "counter"))
    assert not list(tmp_path.glob("v.*"))


def test_a_process_that_dies_before_it_gets_work(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, agree = list_inputs(str(images)), Workers._agree

    def agree_and_lose_one(self: Workers) -> Any:
        facts = agree(self)
        self.workers[0].process.kill()
        self.workers[0].process.join()
        return facts

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "_agree", agree_and_lose_one)
        with pytest.raises(TclError, match="the process of cpu was killed"):
            run(inputs, tmp_path / "v.npy", partial(make_encoder, processor, tmp_path / "log"))
    assert run(inputs, tmp_path / "v.npy", partial(make_encoder, processor, tmp_path / "log"), "cpu").resumed == 100


@pytest.mark.parametrize(
    ("text", "visible", "expected"),
    [
        ("auto", "", ["auto"]),
        ("cpu,cpu", "", ["cpu", "cpu"]),
        ("all", "3,5", ["cuda:0", "cuda:1"]),
        ("1, cuda:0", "3,5", ["cuda:1", "cuda:0"]),
        ("all", "", "no GPU is visible"),
        ("0,2", "3,5", "2 GPUs are visible, no cuda:2"),
        ("0,0", "3,5", "named twice"),
        ("gpu", "", "'gpu' is no device"),
        ("cpu,auto", "", "'auto' is no device"),
        ("cpu,", "", "'' is no device"),
        ("²", "3,5", "'²' is no device"),
        ("cuda:٣", "3,5", "'cuda:٣' is no device"),
    ],
)
def test_names_of_devices(text: str, visible: str, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if isinstance(expected, list):
        assert parse_devices(text) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            parse_devices(text)


def test_devices_of_other_machines_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert parse_devices("0,1", here=False) == ["cuda:0", "cuda:1"]
