"""`tcl embed` as people type it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from tcl.encoders.torch import TorchEncoder
from tcl_cli.main import run

Capture = pytest.CaptureFixture[str]


def test_embed_finds_the_model_by_itself(workplace: Path, capsys: Capture) -> None:
    assert run(["embed", "images/", "--out", "vecs.npy"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "vecs.npy\n"
    assert "the bottleneck is" in captured.err
    assert np.load("vecs.npy").shape == (3, 16)


def test_vectors_of_one_format_are_not_lost_to_the_other(workplace: Path, capsys: Capture) -> None:
    """They share their sidecar files, so not even --restart replaces one by the other."""
    assert run(["embed", "images", "--out", "v.npy"]) == 0
    before = {path.name: path.read_bytes() for path in workplace.glob("v.*")}
    for options in ([], ["--restart"]):
        assert run(["embed", "images", "--out", "v.parquet", *options]) == 2
        message = capsys.readouterr().err
        assert "v.npy: exists, and shares its sidecar files with v.parquet" in message and "move it away" in message
        assert {path.name: path.read_bytes() for path in workplace.glob("v.*")} == before
    for path in workplace.glob("v.*"):
        path.unlink()
    assert run(["embed", "images", "--out", "v.parquet"]) == 0


def test_a_file_that_embed_did_not_write_is_never_replaced(workplace: Path, capsys: Capture) -> None:
    """Not by --restart either, and not when it is the very table that is read."""
    parquet.write_table(pa.table({"id": ["1", "2"], "text": ["a dog", "a cat"], "price": [1, 2]}), "data.parquet")
    before = Path("data.parquet").read_bytes()
    for options in ([], ["--restart"]):
        assert run(["embed", "data.parquet", "--out", "data.parquet", *options]) == 2
        message = capsys.readouterr().err
        assert "is not the work of `tcl embed`" in message and "--restart" not in message
    assert Path("data.parquet").read_bytes() == before


def test_names_and_texts_that_are_no_unicode(workplace: Path, capsys: Capture) -> None:
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (workplace / "images" / "1.png").rename(workplace / "images" / odd)
    assert run(["embed", "images", "--out", "v.npy"]) == 0
    ids = [json.loads(line)["id"] for line in Path("v.ids.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ids == ["2.png", "10.png"]
    assert r"cannot read images/caf\udce9.png: its name is not Unicode; left out" in capsys.readouterr().err
    Path("texts.jsonl").write_text('{"text": "a cut emoji \\ud83d"}\n{"text": "a dog"}\n')
    assert run(["embed", "texts.jsonl", "--out", "t.npy"]) == 0
    assert np.load("t.npy").shape == (2, 16)


def test_what_it_writes_is_searched(workplace: Path, capsys: Capture) -> None:
    Path("texts.txt").write_text("a red circle\na dog on the grass\n")
    assert run(["embed", "texts.txt", "--out", "t.npy"]) == 0
    capsys.readouterr()
    assert run(["search", "a dog on the grass", "--index", "t.npy", "--top", "1"]) == 0
    assert capsys.readouterr().out == "rank\tscore\tid\ttext\n1\t1\t2\ta dog on the grass\n"


def test_embed_json(workplace: Path, capsys: Capture) -> None:
    (workplace / "images" / "3.png").write_bytes(b"x")
    assert run(["embed", "images", "--out", "deep/vecs.parquet", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["count"], result["failed"], result["out"]) == (3, 1, "deep/vecs.parquet")
    assert "Warning: 1 input could not be read; see deep/vecs.errors.jsonl" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--out", "v.npy"], 2, "nowhere: no such file or folder"),
        (["images", "--out", "there.npy"], 2, "there.npy: exists"),
        (["images", "--out", "there.npy/v.npy"], 2, "cannot be written"),
        (["images", "--out", "v.txt"], 2, "written as .npy or .parquet"),
        (["images", "--out", "v.npy", "--model", "runs/none"], 2, "runs/none: no such model"),
        (["images", "--out", "v.npy", "--backend", "onnx"], 2, "no exported bundle"),
        (["images", "--out", "v.npy", "--backend", "tensor"], 2, "Invalid value for '--backend'"),
        (["empty", "--out", "v.npy"], 1, "empty: holds no image"),
        (["bad", "--out", "v.npy"], 1, "none of the 1 inputs has a vector"),
        (["bad", "--out", "v.npy", "--on-error", "fail"], 1, "bad.png: "),
    ],
)
def test_embed_bad_input(workplace: Path, capsys: Capture, arguments: list[str], code: int, message: str) -> None:
    (workplace / "there.npy").write_bytes(b"before")
    (workplace / "empty").mkdir()
    (workplace / "bad").mkdir()
    (workplace / "bad" / "bad.png").write_bytes(b"x")
    assert run(["embed", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err
    assert (workplace / "there.npy").read_bytes() == b"before"
    assert not list(workplace.glob("v.*"))


def test_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["embed", "scenes:val:2", "--out", "v.npy"]) == 2
    assert "tcl pretrain" in capsys.readouterr().err


def test_interrupt(workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = TorchEncoder.encode_image, []

    def interrupted(encoder: TorchEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(pixels))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return encode(encoder, pixels)

    monkeypatch.setattr(TorchEncoder, "encode_image", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits a deaf one
    try:
        assert run(["embed", "images", "--out", "v.npy", "--batch-size", "1"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith("Interrupted.\n") and "Traceback" not in captured.err
    assert re.search(r"[123] of 3 batches are done; the same command goes on\n", captured.err)
    assert [path.name for path in workplace.glob("v.*")] == ["v.npy.partial"]
    assert run(["embed", "images", "--out", "v.npy", "--batch-size", "1"]) == 0
    assert re.search(r"Continuing: [123] of 3 batches are done\n", capsys.readouterr().err)
    assert len(calls) <= 4 and np.load("v.npy").shape == (3, 16)


@pytest.mark.parametrize("out", [["t.npy"], ["parts/", "--shard-rows", "2"]], ids=["file", "parts"])
def test_texts_with_unknown_words(workplace: Path, capfd: pytest.CaptureFixture[str], out: list[str]) -> None:
    """Said once, whatever number of batches and parts; texts without words are listed as ever."""
    Path("texts.txt").write_text("a red circle\n一只 狗\na 狗 dog\n...\na dog\n", encoding="utf-8")
    assert run(["embed", "texts.txt", "--batch-size", "2", "--out", *out]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Warning")]
    assert said[:-1] == [
        "Warning: 2 of 4 texts contain words that the model's vocabulary does not know, 1 of them nothing else; "
        "for example '一只 狗'"
    ]


def test_a_scheduler_that_ends_it(tmp_path: Path) -> None:
    """SIGTERM is answered as Ctrl-C is."""
    bundle = Path(__file__).parents[1] / "compat" / "bundle"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    (tmp_path / "texts.txt").write_text("a red circle\n" * 50_000)
    words = ["embed", "texts.txt", "--out", "v.npy", "--model", str(bundle), "--batch-size", "4"]
    command = [sys.executable, "-m", "tcl_cli", *words]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("v.npy.partial/journal-*.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert "batches are done; the same command goes on\nInterrupted.\n" in said


def test_a_table_beside_its_own_vectors(workplace: Path) -> None:
    """The source has the name that vectors of the other format would have."""
    parquet.write_table(pa.table({"image": [str(workplace / "images" / "1.png")]}), "v.parquet")
    before = Path("v.parquet").read_bytes()
    assert run(["embed", "v.parquet", "--out", "v.npy"]) == 0
    assert run(["embed", "v.parquet", "--out", "v.npy", "--restart"]) == 0
    assert np.load("v.npy").shape == (1, 16) and Path("v.parquet").read_bytes() == before
