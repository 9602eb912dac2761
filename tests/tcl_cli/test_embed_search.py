"""`tcl embed` and `tcl search` as people type them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.runtime import TorchEncoder
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


def test_names_and_texts_that_are_no_unicode(workplace: Path, capsys: Capture) -> None:
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (workplace / "images" / "1.png").rename(workplace / "images" / odd)
    assert run(["embed", "images", "--out", "v.npy"]) == 0
    ids = [json.loads(line)["id"] for line in Path("v.ids.jsonl").read_text(encoding="utf-8").splitlines()]
    assert odd in ids and len(ids) == 3
    assert run(["embed", "images", "--out", "w.parquet"]) == 0
    Path("texts.jsonl").write_text('{"text": "a cut emoji \\ud83d"}\n{"text": "a dog"}\n')
    assert run(["embed", "texts.jsonl", "--out", "t.npy"]) == 0
    assert np.load("t.npy").shape == (2, 16)


def test_a_long_query(workplace: Path, capsys: Capture) -> None:
    assert run(["embed", "images", "--out", "v.npy"]) == 0
    assert run(["search", "a red circle " * 60, "--index", "v.npy"]) == 0


def test_embed_json(workplace: Path, capsys: Capture) -> None:
    (workplace / "images" / "3.png").write_bytes(b"x")
    assert run(["embed", "images", "--out", "deep/vecs.parquet", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["count"], result["failed"], result["out"]) == (3, 1, "deep/vecs.parquet")
    assert "Warning: 1 inputs could not be read; see deep/vecs.errors.jsonl" in captured.err


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


@pytest.fixture
def vectors(workplace: Path, capsys: Capture) -> Path:
    """`vecs.npy` of `images/` and `texts.npy` of three captions."""
    Path("texts.txt").write_text("a red circle\na dog on the grass\na green star\n")
    assert run(["embed", "images", "--out", "vecs.npy"]) == 0
    assert run(["embed", "texts.txt", "--out", "texts.npy"]) == 0
    capsys.readouterr()
    return workplace


def test_search_table(vectors: Path, capsys: Capture) -> None:
    assert run(["search", "a red circle", "--index", "texts.npy", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rank\tscore\tid\ttext"
    assert lines[1] == "1\t1\t1\ta red circle"
    assert len(lines) == 3


def test_search_by_image(vectors: Path, capsys: Capture) -> None:
    assert run(["search", "images/10.png", "--index", "vecs.npy", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["hits"][0]["id"] == "10.png" and result["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert [hit["rank"] for hit in result["hits"]] == [1, 2, 3]


@pytest.mark.parametrize(("query", "index"), [("a red circle", "vecs.npy"), ("images/1.png", "texts.npy")])
def test_search_reranked(vectors: Path, capsys: Capture, query: str, index: str) -> None:
    assert run(["search", query, "--index", index, "--rerank", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [("match" in hit) for hit in hits] == [True, True, False]
    assert all(0 < hit["match"] < 1 for hit in hits[:2])
    assert run(["search", query, "--index", index, "--rerank", "2"]) == 0
    assert capsys.readouterr().out.startswith("rank\tscore\tlogit\tmatch\tid")


def test_images_that_moved(vectors: Path, capsys: Capture) -> None:
    (vectors / "images").rename(vectors / "moved")
    command = ["search", "a red circle", "--index", "vecs.npy", "--rerank", "2"]
    assert run(command) == 1
    assert "--images" in capsys.readouterr().err
    assert run([*command, "--images", "moved"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x", "--index", "none.npy"], 2, "none.npy: no such file"),
        (["x", "--index", "texts.txt"], 2, "not a file of vectors"),
        (["...", "--index", "vecs.npy"], 2, "holds no words"),
        (["missing.jpg", "--index", "vecs.npy"], 2, "missing.jpg: no such image"),
        (["x", "--index", "texts.npy", "--rerank", "2"], 2, "query and vectors are both texts"),
        (["texts.txt", "--index", "vecs.npy"], 1, "cannot read image texts.txt"),
    ],
)
def test_search_bad_input(vectors: Path, capsys: Capture, arguments: list[str], code: int, message: str) -> None:
    assert run(["search", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


def test_vectors_of_another_model(vectors: Path, capsys: Capture) -> None:
    meta = json.loads(Path("vecs.meta.json").read_text())
    Path("vecs.meta.json").write_text(json.dumps(meta | {"model_hash": "0" * 64}))
    assert run(["search", "a red circle", "--index", "vecs.npy"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "vectors of another model" in captured.err
