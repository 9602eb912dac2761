"""`tcl data check` and `tcl data pack`: what they print, and when they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl.data.pairs.table import read_pairs
from tcl.data.tokenizer import CaptionTokenizer
from tests.conftest import CAPTIONS


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pairs in the working directory; one image is missing, one a copy, one no image."""
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "c.png").write_text("<html>")
    rows = [{"image": f"{name}.png", "caption": f"a dog {name}"} for name in "abcd"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"image": "e.png"}]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_prints_a_table_and_fails_beyond_a_limit(tcl: Callable, pairs: Path) -> None:
    result = tcl("data", "check", "pairs.jsonl", "--workers", "1", "--list", "bad.jsonl")
    assert result.code == 1
    lines = dict(line.split("\t") for line in result.stdout.splitlines() if "    " not in line)
    assert lines["pairs"] == "4"
    assert lines["rows skipped"] == "1"
    assert lines["words per caption"] == "min 3, median 3, p95 3, max 3"
    assert lines["  missing"] == lines["  unreadable"] == "1 (25 %)"
    assert lines["  copies of another"] == "1 (50 %)"
    assert lines["  width"] == "min 60, median 60, p95 60, max 60"
    assert "line 5: no caption" in result.stdout and "d.png: no such file" in result.stdout
    assert "--tokenizer" in result.stderr
    assert (
        "Error: beyond the limits: 50 % of the images are missing or unreadable (--max-bad 5); 20 % of the rows were "
        "skipped (--max-skipped 5); 50 % of the images are copies of another (--max-duplicates 20)\n" in result.stderr
    )
    assert "bad.jsonl names the images" in result.stderr
    listed = [json.loads(line) for line in (pairs / "bad.jsonl").read_text().splitlines()]
    assert [(row["row"], row["problem"]) for row in listed] == [(2, "unreadable"), (3, "missing"), (1, "copy")]


def test_check_passes_within_the_limits(tcl: Callable, pairs: Path) -> None:
    limits = ["--max-bad", "50", "--max-skipped", "20", "--max-duplicates", "50"]
    result = tcl("data", "check", "pairs.jsonl", "-w", "1", *limits, "--json")
    assert (result.code, result.stderr) == (0, "")
    values = json.loads(result.stdout)
    assert values["ok"] and values["exceeded"] == [] and values["sources"] == ["pairs.jsonl"]
    assert values["images"]["bad_percent"] == 50.0 and values["captions"]["unknown"] is None
    assert values["skipped"]["rows"] == 1


def test_check_of_the_vocabulary(tcl: Callable, pairs: Path) -> None:
    (pairs / "vocabulary").mkdir()
    CaptionTokenizer.train(CAPTIONS, 300).save(pairs / "vocabulary")
    (pairs / "foreign.jsonl").write_text(json.dumps({"image": "a.png", "caption": "собака бежит"}) + "\n")
    arguments = ["data", "check", "foreign.jsonl", "-w", "1", "--tokenizer", "vocabulary"]
    result = tcl(*arguments)
    assert result.code == 1
    assert "100 % of the tokens are [UNK] (--max-unknown 5)" in result.stderr
    assert "[UNK] among tokens\t2 (100 %)" in result.stdout and "  scripts\tCyrillic 11" in result.stdout
    assert "  cut at 25\t0 (0 %)" in result.stdout
    result = tcl(*arguments, "--max-unknown", "100", "--max-length", "2", "--json")
    assert result.code == 0
    assert json.loads(result.stdout)["captions"]["tokens"]["cut_at_2"] == {"count": 1, "percent": 100.0}


def test_check_of_a_sample(tcl: Callable) -> None:
    result = tcl("data", "check", "scenes:val:20", "-w", "1", "--sample", "3", "--max-duplicates", "100")
    assert result.code == 0
    assert "images\t20" in result.stdout and "  read, as a sample\t3" in result.stdout


def test_columns_can_be_named(tcl: Callable, pairs: Path) -> None:
    (pairs / "rows.csv").write_text("Bild;Wort;caption\na.png;a dog;no\nc.png;a cat;no\n")
    options = ["rows.csv", "--image-column", "Bild", "--text-column", "wort"]
    result = tcl("data", "check", *options, "--max-bad", "50", "-w", "1", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["captions"]["words"]["mean"] == 2
    assert tcl("data", "pack", options[0], "packed", *options[1:], "-w", "1").code == 0
    assert read_pairs([str(pairs / "packed")])[0].captions == ["a dog"]
    result = tcl("data", "check", "rows.csv", "--image-column", "foto")
    assert result.code == 2 and "rows.csv: no column foto among Bild, Wort, caption" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "no such file or folder: absent.jsonl"),
        (["pairs.jsonl", "--tokenizer", "./absent"], "no such tokenizer"),
        (["pairs.jsonl", "--max-length", "20"], "--max-length is about tokens"),
        (["pairs.jsonl", "--max-unknown", "20"], "--max-unknown is about tokens"),
        (["pairs.jsonl", "--max-bad", "101"], "--max-bad"),
        (["pairs.jsonl", "--list", "pairs.jsonl"], "pairs.jsonl: exists"),
        (["pairs.jsonl", "--list", "absent/bad.jsonl"], "--list absent/bad.jsonl: no folder absent"),
    ],
)
def test_wrong_arguments_of_check(tcl: Callable, pairs: Path, arguments: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in pairs.iterdir()}
    result = tcl("data", "check", *arguments)
    assert result.code == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in pairs.iterdir()} == before


def test_pack_says_what_it_did_and_what_is_next(tcl: Callable, pairs: Path) -> None:
    result = tcl("data", "pack", "pairs.jsonl", "packed", "--size", "20", "-w", "1")
    assert (result.code, result.stdout) == (0, "packed\n")
    assert "1 row without image or caption; the first is" in result.stderr
    assert "2 images in 1 shard, 0 copied as they were; " in result.stderr
    assert "2 images could not be read; see packed/errors.jsonl" in result.stderr
    assert "  -> tcl pretrain --data 'packed/*.tar'\n" in result.stderr
    again = tcl("data", "pack", "pairs.jsonl", "packed", "--size", "20")
    assert again.code == 2 and "packed: is packed already" in again.stderr
    result = tcl("data", "pack", "pairs.jsonl", "other", "-w", "1", "--json")
    values = json.loads(result.stdout)
    assert (values["images"], values["failed"], values["out"]) == (2, 2, "other")


def test_pack_continues(tcl: Callable, pairs: Path) -> None:
    options = ["pairs.jsonl", "packed", "--shard-rows", "1", "-w", "1"]
    assert tcl("data", "pack", *options).code == 0
    record = json.loads((pairs / "packed" / "pack.json").read_text())
    (pairs / "packed" / "pack.json").write_text(json.dumps(record | {"finished": False}))
    (pairs / "packed" / "00001_stats.json").unlink()
    result = tcl("data", "pack", *options)
    assert result.code == 0 and "packed: continues after 3 of 4 shards" in result.stderr


def test_nothing_to_pack(tcl: Callable, pairs: Path) -> None:
    (pairs / "a.png").unlink()
    (pairs / "b.png").unlink()
    result = tcl("data", "pack", "pairs.jsonl", "packed", "-w", "1")
    assert result.code == 1
    assert "none of the 4 images can be read" in result.stderr and "a.png: no such file" in result.stderr
