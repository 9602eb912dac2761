"""Vectors match their ids whatever the number of workers, and appear only when they are complete."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from tcl.data.inputs.listing import list_inputs
from tcl.embedding.run import embed
from tcl.encoders.base import reading_processor
from tcl.encoders.torch import TorchEncoder
from tcl.errors import DataError, UsageError
from tcl.models.tcl import TCL

NAMES = ["1.png", "2.jpg", "10.png", "b/3.png", "ünï 7.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose names sort naturally, and what should not be found."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for name in reversed(NAMES):
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def encoder(tiny_model: TCL, tiny_model_folder: Path) -> TorchEncoder:  # saving sets the model's hash
    return TorchEncoder(tiny_model)


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _ids(path: Path) -> list[str]:
    return [line["id"] for line in _lines(path)]


def test_rows_are_the_vectors_of_their_ids(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    inputs = list_inputs(str(folder))
    report = embed(inputs, encoder, tmp_path / "v.npy", batch_size=2)
    vectors = np.load(tmp_path / "v.npy")
    assert _ids(tmp_path / "v.ids.jsonl") == NAMES
    assert vectors.shape == (5, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    processor = reading_processor(encoder)
    for row, name in enumerate(NAMES):
        alone = encoder.encode_image(processor.images([folder / name]))[0]
        np.testing.assert_allclose(vectors[row], alone, atol=1e-5)
    assert (report.count, report.failed) == (5, 0)
    assert report.bottleneck in report.rates and set(report.rates) == {"read + decode", "encode", "write"}
    assert not (tmp_path / "v.errors.jsonl").exists()


def test_meta(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    embed(list_inputs(str(folder)), encoder, tmp_path / "v.npy", dtype="float16")
    meta = json.loads((tmp_path / "v.meta.json").read_text())
    expected = {"kind": "image", "count": 5, "failed": 0, "dim": 16, "dtype": "float16", "backend": "torch-cpu"}
    assert expected.items() <= meta.items()
    assert meta["model_hash"] == encoder.model_hash
    assert meta["preprocessing"]["image_size"] == [32, 32]
    assert np.load(tmp_path / "v.npy").dtype == np.float16


def test_workers_change_nothing(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    (folder / "4.png").write_bytes(b"broken")
    for workers in (1, 4):
        embed(list_inputs(str(folder)), encoder, tmp_path / f"{workers}.npy", batch_size=2, workers=workers)
    for name in ("npy", "ids.jsonl", "errors.jsonl"):
        assert (tmp_path / f"1.{name}").read_bytes() == (tmp_path / f"4.{name}").read_bytes()


def test_unreadable_images_are_listed(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    (folder / "1.png").write_bytes(b"not an image")
    (folder / "3.png").write_bytes((folder / "10.png").read_bytes()[:300])
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")  # an image, whoever can decode it
    report = embed(list_inputs(str(folder)), encoder, tmp_path / "v.npy", batch_size=2)
    assert (report.count, report.failed) == (4, 3)
    assert _ids(tmp_path / "v.ids.jsonl") == NAMES[1:]
    errors = _lines(tmp_path / "v.errors.jsonl")
    assert [error["id"] for error in errors] == ["1.png", "3.png", "phone.HEIC"]
    assert "not an image" in errors[0]["reason"] and "unknown format" in errors[2]["reason"]
    with pytest.raises(DataError, match=r"1\.png: "):
        embed(list_inputs(str(folder)), encoder, tmp_path / "w.npy", on_error="fail")
    assert not list(tmp_path.glob("w.*"))


def test_all_unreadable(encoder: TorchEncoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="none of the 1 inputs") as caught:
        embed(list_inputs(str(tmp_path)), encoder, tmp_path / "v.npy")
    assert "a.png" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_texts(encoder: TorchEncoder, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a red circle\n\na blue square\n!!!\n", encoding="utf-8")
    embed(list_inputs(str(tmp_path / "t.txt")), encoder, tmp_path / "v.npy")
    assert _lines(tmp_path / "v.ids.jsonl") == [
        {"id": "1", "status": "ok", "text": "a red circle"},
        {"id": "3", "status": "ok", "text": "a blue square"},
    ]
    assert _lines(tmp_path / "v.errors.jsonl") == [{"id": "4", "reason": "no words in the text"}]
    alone = encoder.encode_text(*encoder.processor.texts(["a blue square"]))[0]
    np.testing.assert_allclose(np.load(tmp_path / "v.npy")[1], alone, atol=1e-5)


def test_parquet(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    for name in ("v.npy", "v2.parquet"):
        embed(list_inputs(str(folder)), encoder, tmp_path / name, batch_size=2)
    table = parquet.read_table(tmp_path / "v2.parquet")
    assert table["id"].to_pylist() == NAMES
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), np.load(tmp_path / "v.npy"))
    assert not (tmp_path / "v2.ids.jsonl").exists()


def test_output_in_the_way(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    inputs = list_inputs(str(folder))
    (tmp_path / "v.npy").write_bytes(b"before")
    for restart in (False, True):  # it is not the work of `embed`
        with pytest.raises(UsageError, match=r"v\.npy: exists, and is not"):
            embed(inputs, encoder, tmp_path / "v.npy", restart=restart)
    assert (tmp_path / "v.npy").read_bytes() == b"before"
    (tmp_path / "v.meta.json").write_text("{}")
    with pytest.raises(UsageError, match=r"v\.npy: exists"):
        embed(inputs, encoder, tmp_path / "v.npy")
    (tmp_path / "v.errors.jsonl").write_text("of the run before")
    embed(inputs, encoder, tmp_path / "v.npy", restart=True)
    assert np.load(tmp_path / "v.npy").shape == (5, 16)
    assert not (tmp_path / "v.errors.jsonl").exists()
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "w.npy.partial").touch()
    with pytest.raises(UsageError, match=r"w\.npy\.partial: cannot be written: File exists"):
        embed(inputs, encoder, tmp_path / "w.npy")


def test_output_that_cannot_be_written(folder: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    inputs = list_inputs(str(folder))
    with pytest.raises(UsageError, match=r"\.npy or \.parquet"):
        embed(inputs, encoder, tmp_path / "v.txt")
    with pytest.raises(UsageError, match="cannot be written"):
        embed(inputs, encoder, folder / "1.png" / "v.npy")


def test_an_interrupt_keeps_what_was_there_and_what_was_done(
    folder: Path, encoder: TorchEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(list_inputs(str(folder)), encoder, tmp_path / "v.npy")
    before = (tmp_path / "v.npy").read_bytes()
    calls = 0

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return TorchEncoder.encode_image(encoder, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode_image", encode)
        with pytest.raises(KeyboardInterrupt):
            embed(list_inputs(str(folder)), encoder, tmp_path / "v.npy", batch_size=2, restart=True)
    assert (tmp_path / "v.npy").read_bytes() == before
    assert embed(list_inputs(str(folder)), encoder, tmp_path / "v.npy", batch_size=2).resumed == 2
    assert not list(tmp_path.glob("*.partial"))


def test_the_slow_stage_is_named(
    folder: Path, encoder: TorchEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        now[0] += 1.0
        return TorchEncoder.encode_image(encoder, pixels)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(encoder, "encode_image", slow)
    assert embed(list_inputs(str(folder)), encoder, tmp_path / "v.npy").bottleneck == "encode"


def test_sources_of_images(folder: Path, tmp_path: Path) -> None:
    assert list_inputs(str(folder / "2.jpg")).ids == ["2.jpg"]
    assert list_inputs(f"{folder}/*.png").ids == ["1.png", "10.png", "ünï 7.png"]
    assert list_inputs(f"{folder}/**/*.png").ids == ["1.png", "10.png", "b/3.png", "ünï 7.png"]
    (folder / "list.txt").write_text("10.png\nb/3.png\n")
    listed = list_inputs(str(folder / "list.txt"))
    assert (listed.kind, listed.ids, listed.location(1)) == ("image", ["10.png", "b/3.png"], str(folder / "b/3.png"))
    (folder / "rows.csv").write_text("id,image,caption\n7,1.png,one\n8,10.png,ten\n")
    rows = list_inputs(str(folder / "rows.csv"))
    assert (rows.kind, rows.ids, rows.values) == ("image", ["7", "8"], ["1.png", "10.png"])
    assert list_inputs("scenes:val:3").ids[0].startswith("scenes:val:0:")


def test_sources_of_texts(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "caption": ["one", "two"]}\n{"caption": "three"}\n')
    rows = list_inputs(str(tmp_path / "rows.jsonl"), "text")
    assert list(zip(rows.ids, rows.values, strict=True)) == [("1#1", "one"), ("1#2", "two"), ("2", "three")]
    (tmp_path / "rows.tsv").write_text("id\ttext\nx\thello\n")
    assert list_inputs(str(tmp_path / "rows.tsv")).ids == ["x"]
    (tmp_path / "rows.json").write_text('[{"text": "hello"}]')
    assert list_inputs(str(tmp_path / "rows.json")).values == ["hello"]
    assert list_inputs("scenes:val:2", "text").kind == "text"


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match="line 2"):
        list_inputs(str(tmp_path / "t.txt"))
