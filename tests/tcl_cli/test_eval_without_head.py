"""`tcl eval grounding` and `tcl eval classification`, which take any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcl.models.tcl import TCL
from tests.tcl_cli.fine_tuned import read_lines, save_fine_tuned, write_rows

BOX = {"image": "images/1.png", "text": "a dog", "box": [4, 4, 16, 16]}


def test_regions_of_scenes(workplace: Path, tcl: Any) -> None:
    result = tcl("eval", "grounding", "--data", "scenes:val:3", "--predictions", "found.jsonl")
    assert result.code == 0, result.stderr
    header, (split, rows, proposals, _, inside, _) = (line.split("\t") for line in result.stdout.splitlines())
    assert header == ["split", "rows", "proposals %", "heat box %", "peak inside %", "mean IoU"]
    found = read_lines("found.jsonl")
    assert (split, int(rows), proposals) == ("all", len(found), "-")
    assert float(inside) == pytest.approx(100 * sum(row["peak_inside"] for row in found) / len(found), abs=0.05)


def test_proposals_and_splits(workplace: Path, tcl: Any) -> None:
    rows = [BOX | {"split": "val", "image_id": 1}, BOX | {"split": "test", "image_id": 1, "image": "images/2.png"}]
    source = write_rows("rows.jsonl", rows)
    Path("dets.json").write_text('{"1": [[4, 4, 16, 16]]}')
    command = ("eval", "grounding", "--data", source, "--json", "--layer", "3")
    values = json.loads(tcl(*command, "--proposals", "dets.json").stdout)
    assert [figures["split"] for figures in values["splits"]] == ["all", "val", "test"] and values["layer"] == 3
    assert values["splits"][0]["proposals"] == 100
    assert json.loads(tcl(*command).stdout)["splits"][0]["proposals"] is None


@pytest.mark.parametrize(
    ("change", "options", "code", "message"),
    [
        ({"box": [400, 4, 16, 16]}, [], 1, "line 2: most of box"),
        ({"box": None}, [], 1, "line 2: no box"),
        ({}, ["--proposals", "none.json"], 2, "no such file of proposals: none.json"),
        ({}, ["--layer", "0"], 2, "layer 0"),
        ({}, ["--predictions", "rows.jsonl"], 2, "is the data itself"),
    ],
)
def test_regions_that_cannot_be_used(
    workplace: Path, tcl: Any, change: dict[str, Any], options: list[str], code: int, message: str
) -> None:
    result = tcl("eval", "grounding", "--data", write_rows("rows.jsonl", [BOX, BOX | change]), *options)
    assert result.code == code and message in result.stderr and "Traceback" not in result.stderr


def test_regions_of_images_that_cannot_be_read(workplace: Path, tcl: Any) -> None:
    gone = BOX | {"image": "gone.png"}
    result = tcl("eval", "grounding", "--data", write_rows("rows.jsonl", [BOX, gone]))
    assert result.code == 0 and "1 image left out:\n  rows.jsonl line 2: " in result.stderr
    result = tcl("eval", "grounding", "--data", write_rows("rows.jsonl", [gone]))
    assert result.code == 1 and "no image can be read" in result.stderr
    result = tcl("eval", "grounding", "--data", write_rows("rows.jsonl", []))
    assert result.code == 1 and "no rows" in result.stderr


def test_a_model_for_two_images_finds_regions_too(workplace: Path, tcl: Any, tiny_model: TCL) -> None:
    folder = save_fine_tuned(tiny_model, "nlvr2", ["False", "True"], "nlvr2")
    command = ("eval", "grounding", "--data", "scenes:val:2", "--json")
    plain, doubled = (json.loads(tcl(*command, "--model", model).stdout) for model in ("runs/tiny", folder))
    assert doubled["splits"] == plain["splits"] and doubled["layer"] == plain["layer"]


@pytest.fixture
def classes(workplace: Path) -> Path:
    for folder, name in (("red_circle", "1.png"), ("house", "2.png"), ("house", "10.png")):
        Path("classes", folder).mkdir(parents=True, exist_ok=True)
        Path("images", name).rename(Path("classes", folder, name))
    return workplace


def test_classes_of_a_folder(classes: Path, tcl: Any) -> None:
    result = tcl("eval", "classification", "--data", "classes", "--predictions", "said.jsonl")
    assert result.code == 0, result.stderr
    header, *lines = (line.split("\t") for line in result.stdout.splitlines())
    assert header == ["class", "images", "top-1 %", "top-5 %", "taken for"]
    assert [line[:2] for line in lines] == [["house", "2"], ["red circle", "1"], ["mean of classes", "3"], ["all", "3"]]
    said = read_lines("said.jsonl")
    right = sum(row["predicted"] == row["label"] for row in said)
    assert float(lines[-1][2]) == pytest.approx(100 * right / 3, abs=0.05) and lines[-1][3] == "100"
    assert sum(share["confidence"] for share in said[0]["top"]) == pytest.approx(1) and "5 templates" in result.stderr


def test_templates(classes: Path, tcl: Any) -> None:
    templates = ("--template", "a {} on the grass", "--template", "{}")
    values = json.loads(tcl("eval", "classification", "--data", "classes", *templates, "--json").stdout)
    assert values["templates"] == ["a {} on the grass", "{}"] and values["images"] == 3 and values["top5"] == 100
    result = tcl("eval", "classification", "--data", "classes", "--template", "a photo")
    assert result.code == 2 and "template 'a photo' needs one {}" in result.stderr


def test_folders_without_classes(classes: Path, tcl: Any) -> None:
    result = tcl("eval", "classification", "--data", "nowhere")
    assert result.code == 2 and "no such folder: nowhere" in result.stderr
    result = tcl("eval", "classification", "--data", "classes/house")
    assert result.code == 1 and "at least two folders" in result.stderr
    Path("empty/a").mkdir(parents=True)
    Path("empty/b").mkdir()
    result = tcl("eval", "classification", "--data", "empty")
    assert result.code == 1 and "empty: no images in its 2 folders" in result.stderr
    for name in ("red_circle/1.png", "house/2.png"):
        Path("classes", name).write_bytes(b"no image")
    result = tcl("eval", "classification", "--data", "classes")
    assert result.code == 0 and "2 images left out:" in result.stderr
    Path("classes/house/10.png").write_bytes(b"")
    result = tcl("eval", "classification", "--data", "classes")
    assert result.code == 1 and "none of its 3 images can be read" in result.stderr
