"""`tcl eval entailment` and `tcl eval nlvr2`: figures, predictions, and every wrong row or model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tcl.models.tcl import TCL
from tests.tcl_cli.fine_tuned import read_lines, save_fine_tuned, write_rows

LABELS = ["no", "perhaps", "yes"]
ROWS: list[dict[str, Any]] = [
    {"image": "images/1.png", "text": "a red circle", "label": "yes"},
    {"image": "images/2.png", "text": "two dogs", "label": "no"},
    {"image": "images/1.png", "text": "a house", "label": "no"},
    {"image": "images/10.png", "text": "grass near a house", "label": "yes"},
]


@pytest.fixture
def place(workplace: Path, tiny_model: TCL) -> Path:
    save_fine_tuned(tiny_model, "entailment", LABELS, "ve")
    return workplace


def test_figures_and_predictions_agree(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", ROWS)
    result = tcl("eval", "entailment", "--model", "ve", "--data", source, "--predictions", "said.jsonl")
    assert result.code == 0, result.stderr
    said = read_lines("said.jsonl")
    assert [row["text"] for row in said] == [row["text"] for row in ROWS]
    assert all(len(row["top"]) == 3 and row["confidence"] == row["top"][0]["confidence"] for row in said)
    right = [row["predicted"] == row["label"] for row in said]
    header, *lines = (line.split("\t") for line in result.stdout.splitlines())
    assert header == ["class", "rows", "accuracy %", "precision %", "F1 %"]
    assert [line[:2] for line in lines] == [["no", "2"], ["perhaps", "0"], ["yes", "2"], ["all", "4"]]
    assert float(lines[-1][2]) == pytest.approx(25 * sum(right)) and lines[1][2] == "-"
    assert "predictions in said.jsonl" in result.stderr
    values = json.loads(tcl("eval", "entailment", "--model", "ve", "--data", source, "--json").stdout)
    assert values["accuracy"] == pytest.approx(25 * sum(right)) and values["rows"] == 4 and values["bad"] == []
    assert [line["label"] for line in values["classes"]] == LABELS and values["predictions"] is None


def test_pairs_of_images(workplace: Path, tcl: Any, tiny_model: TCL) -> None:
    save_fine_tuned(tiny_model, "nlvr2", ["False", "True"], "pairs")
    rows = [
        {"images": ["images/1.png", "images/2.png"], "text": "two dogs", "label": truth} for truth in (True, "false")
    ]
    result = tcl("eval", "nlvr2", "--model", "pairs", "--data", write_rows("rows.jsonl", rows), "--json")
    assert json.loads(result.stdout)["accuracy"] == 50, result.stderr
    lone = write_rows("lone.jsonl", [{"image": "images/1.png", "text": "a dog", "label": "True"}])
    result = tcl("eval", "nlvr2", "--model", "pairs", "--data", lone)
    assert result.code == 1 and "two images are needed" in result.stderr


def test_rows_without_labels_give_predictions_only(place: Path, tcl: Any) -> None:
    rows = [{key: value for key, value in row.items() if key != "label"} for row in ROWS]
    source = write_rows("rows.jsonl", rows)
    result = tcl("eval", "entailment", "--model", "ve", "--data", source)
    assert result.code == 2 and "no row has a label" in result.stderr and "--predictions" in result.stderr
    result = tcl("eval", "entailment", "--model", "ve", "--data", source, "--predictions", "said.jsonl")
    assert result.code == 0 and "4 of 4 rows have no label: predictions only" in result.stderr and not result.stdout
    assert [row["label"] for row in read_lines("said.jsonl")] == [None] * 4
    some = write_rows("some.jsonl", [*rows, ROWS[0]])
    result = tcl("eval", "entailment", "--model", "ve", "--data", some, "--predictions", "said.jsonl", "--json")
    assert "4 of 5 rows have no label" in result.stderr
    assert sum(line["rows"] for line in json.loads(result.stdout)["classes"]) == 1
    assert json.loads(result.stdout)["predictions"] == "said.jsonl" and len(read_lines("said.jsonl")) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "rows.jsonl line 5: unknown label 'maybe'"),
        ({"image": ""}, "rows.jsonl line 5: no image"),
        ({"text": " "}, "rows.jsonl line 5: no text"),
        ({"label": [1]}, "rows.jsonl line 5: a label is a text"),
    ],
)
def test_rows_that_cannot_be_used(place: Path, tcl: Any, change: dict[str, Any], message: str) -> None:
    source = write_rows("rows.jsonl", [*ROWS, ROWS[0] | change])
    result = tcl("eval", "entailment", "--model", "ve", "--data", source, "--predictions", "said.jsonl")
    assert result.code == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert not Path("said.jsonl").exists()


def test_labels_of_another_set(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", [ROWS[0] | {"label": "entailment"}, ROWS[1] | {"label": "neutral"}])
    result = tcl("eval", "entailment", "--model", "ve", "--data", source)
    assert result.code == 1 and "unknown label 'entailment'" in result.stderr
    assert "the model knows no, perhaps, yes" in result.stderr


def test_rows_of_one_class_alone(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", [row for row in ROWS if row["label"] == "yes"])
    result = tcl("eval", "entailment", "--model", "ve", "--data", source)
    assert result.code == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [["no", "0"], ["perhaps", "0"], ["yes", "2"], ["all", "2"]]
    assert [line[2] for line in lines[:2]] == ["-", "-"] and lines[2][2] == lines[3][2]


@pytest.mark.parametrize(
    ("source", "says"), [("rows.jsonl", "no rows"), ("rows.csv#split=test", "no row has split=test")]
)
def test_an_empty_split(place: Path, tcl: Any, source: str, says: str) -> None:
    Path("rows.jsonl").write_text("")
    Path("rows.csv").write_text("image,text,label,split\nimages/1.png,a dog,yes,train\n")
    result = tcl("eval", "entailment", "--model", "ve", "--data", source)
    assert result.code == 1 and f"{source}: {says}" in result.stderr


def test_images_that_cannot_be_read(place: Path, tcl: Any) -> None:
    rows = [*ROWS, ROWS[0] | {"image": "gone.png"}]
    result = tcl("eval", "entailment", "--model", "ve", "--data", write_rows("rows.jsonl", rows), "--json")
    assert result.code == 0 and "1 image left out:\n  rows.jsonl line 5: " in result.stderr
    assert json.loads(result.stdout)["rows"] == 4 and json.loads(result.stdout)["bad"][0]["image"].endswith("gone.png")
    result = tcl("eval", "entailment", "--model", "ve", "--data", write_rows("rows.jsonl", rows[4:]))
    assert result.code == 1 and "no image can be read; the first: " in result.stderr and "--images" in result.stderr


@pytest.mark.parametrize(
    ("task", "model", "lacks"),
    [
        ("entailment", "runs/tiny", "has no classification head (cls_head) for entailment: it was not fine-tuned"),
        ("nlvr2", "ve", "has no classification head (cls_head) for nlvr2: it was fine-tuned for entailment"),
        ("vqa", "ve", "has no answer decoder (text_decoder) for vqa: it was fine-tuned for entailment"),
    ],
)
def test_models_without_the_head(place: Path, tcl: Any, task: str, model: str, lacks: str) -> None:
    row = {"images": ["images/1.png"] * 2, "image": "images/1.png", "text": "a", "question": "a?", "answer": "b"}
    rows = write_rows("rows.jsonl", [row | {"label": "yes"}])
    result = tcl("eval", task, "--model", model, "--data", rows)
    assert result.code == 2 and lacks in result.stderr and f"tcl finetune {task} --model {model}" in result.stderr


def test_no_model_and_no_images_are_noticed_first(place: Path, tcl: Any) -> None:
    for task in ("entailment", "nlvr2", "vqa", "grounding"):
        result = tcl("eval", task, "--model", "ve", "--data", "none.jsonl", "--images", "nowhere/")
        assert result.code == 2 and "no such folder of images: nowhere/" in result.stderr
        result = tcl("eval", task, "--model", "runs/none", "--data", "none.jsonl")
        assert result.code == 2 and "runs/none: no such model" in result.stderr
        result = tcl("eval", task, "--model", "ve", "--data", "none.jsonl")
        assert result.code == 2 and "no such file or folder: none.jsonl" in result.stderr


def test_predictions_that_cannot_be_written(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", ROWS)
    Path("link.jsonl").symlink_to("rows.jsonl")
    before = Path("rows.jsonl").read_text()
    for target, message in (
        ("rows.jsonl", "is the data itself"),
        ("link.jsonl", "is the data itself"),
        ("images", "is no file"),
        (os.devnull, "is no file"),
        ("no/such/said.jsonl", "no folder no/such"),
    ):
        result = tcl("eval", "entailment", "--model", "ve", "--data", source, "--predictions", target)
        assert result.code == 2 and message in result.stderr, target
    for some in ("rows.jsonl#label=yes", "*.jsonl"):
        result = tcl("eval", "entailment", "--model", "ve", "--data", some, "--predictions", "rows.jsonl")
        assert result.code == 2 and "is the data itself" in result.stderr
    assert Path("rows.jsonl").read_text() == before


def test_a_full_disk_leaves_figures_and_the_old_file(place: Path, tcl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("said.jsonl").write_text("old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device", "said.jsonl")

    monkeypatch.setattr(Path, "replace", full)
    source = write_rows("rows.jsonl", ROWS)
    result = tcl("eval", "entailment", "--model", "ve", "--data", source, "--predictions", "said.jsonl")
    assert result.code == 1 and "No space left" in result.stderr and "all\t4" in result.stdout
    assert Path("said.jsonl").read_text() == "old" and not list(Path().glob(".*partial"))


def test_names_that_are_no_unicode(place: Path, tcl: Any) -> None:
    name = os.fsdecode(b"images/caf\xe9.png")
    Path("images/1.png").rename(name)
    Path("rows.jsonl").write_text(json.dumps(ROWS[0] | {"image": name}))
    result = tcl("eval", "entailment", "--model", "ve", "--data", "rows.jsonl", "--predictions", "said.jsonl")
    assert result.code == 1 and "rows.jsonl line 1: the name of its image is not Unicode" in result.stderr
