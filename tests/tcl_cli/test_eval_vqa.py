"""`tcl eval vqa`: soft accuracy, predictions, the challenge's file, and every wrong question or list of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcl.models.tcl import TCL
from tests.tcl_cli.fine_tuned import read_lines, save_fine_tuned, write_rows

ANSWERS = ["red", "blue", "a star", "2", "yes"]
ROWS: list[dict[str, Any]] = [
    {"question_id": 7, "image": "images/1.png", "question": "What colour?", "answer": "red"},
    {"question_id": 8, "image": "images/2.png", "question": "How many stars?", "answer": "two"},
    {"question_id": 9, "image": "images/1.png", "question": "Is it red?", "answers": ["yes", "no"]},
    {"question_id": 10, "image": "images/10.png", "question": "What shape?", "answer": "a pentagon"},
]


@pytest.fixture
def place(workplace: Path, tiny_model: TCL) -> Path:
    save_fine_tuned(tiny_model, "vqa", ANSWERS, "vqa")
    return workplace


def test_figures_predictions_and_submission_agree(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", ROWS)
    files = ("--predictions", "said.jsonl", "--submission", "result.json")
    result = tcl("eval", "vqa", "--model", "vqa", "--data", source, *files)
    assert result.code == 0, result.stderr
    said = read_lines("said.jsonl")
    assert [row["question_id"] for row in said] == [7, 8, 9, 10] and {row["answer"] for row in said} <= set(ANSWERS)
    assert json.loads(Path("result.json").read_text()) == [
        {"question_id": row["question_id"], "answer": row["answer"]} for row in said
    ]
    header, *lines = (line.split("\t") for line in result.stdout.splitlines())
    assert header == ["type", "questions", "accuracy %"]
    assert [line[:2] for line in lines] == [["number", "1"], ["other", "2"], ["yes/no", "1"], ["all", "4"]]
    assert float(lines[-1][2]) == pytest.approx(25 * sum(row["accuracy"] for row in said))
    assert "of 1 of 4 questions no answer is in the list" in result.stderr
    values = json.loads(tcl("eval", "vqa", "--model", "vqa", "--data", source, "--json").stdout)
    assert values["accuracy"] == pytest.approx(25 * sum(row["accuracy"] for row in said))
    assert values["outside"] == 1 and values["types"]["other"]["questions"] == 2 and values["k"] == 5


def test_another_list_of_answers(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", ROWS)
    Path("answers.json").write_text('["a pentagon"]')
    result = tcl("eval", "vqa", "--model", "vqa", "--data", source, "--answers", "answers.json", "--json")
    values = json.loads(result.stdout)
    assert (values["answers"], values["outside"], values["accuracy"]) == (1, 3, 25), result.stderr
    for content, code, message in ((None, 2, "no such answer list"), ("[]", 1, "is empty"), ("[3]", 1, "is no answer")):
        path = Path("answers.json")
        path.unlink() if content is None else path.write_text(content)
        result = tcl("eval", "vqa", "--model", "vqa", "--data", source, "--answers", "answers.json")
        assert result.code == code and message in result.stderr


def test_fewer_answers_decoded(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", ROWS)
    tcl("eval", "vqa", "--model", "vqa", "--data", source, "--k", "1", "--predictions", "said.jsonl")
    assert all(row["confidence"] == 1 and len(row["top"]) == 1 for row in read_lines("said.jsonl"))


def test_two_files_of_vqa_v2(place: Path, tcl: Any) -> None:
    questions = [{"question_id": 1, "image_id": 1, "question": "What colour?"}]
    notes = [{"question_id": 1, "answer_type": "other", "answers": [{"answer": "red"}] * 10}]
    Path("q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    Path("a.json").write_text(json.dumps({"annotations": notes}))
    Path("coco/val2014").mkdir(parents=True)
    Path("images/1.png").rename("coco/val2014/COCO_val2014_000000000001.jpg")
    command = ("eval", "vqa", "--model", "vqa", "--images", "coco", "--data", "q.json")
    values = json.loads(tcl(*command, "--data", "a.json", "--json").stdout)
    assert values["types"]["other"]["questions"] == 1
    result = tcl(*command)
    assert result.code == 2 and "no question has an answer" in result.stderr and "annotations" in result.stderr


def test_questions_without_answers_give_predictions_only(place: Path, tcl: Any) -> None:
    rows = [{key: value for key, value in row.items() if not key.startswith("answer")} for row in ROWS]
    source = write_rows("rows.jsonl", rows)
    result = tcl("eval", "vqa", "--model", "vqa", "--data", source, "--submission", "result.json")
    assert result.code == 0 and "4 of 4 questions have no answer: predictions only" in result.stderr
    assert not result.stdout and len(json.loads(Path("result.json").read_text())) == 4


def test_what_is_missing_of_a_submission(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", [*ROWS, ROWS[0] | {"question_id": 11, "image": "gone.png"}])
    result = tcl("eval", "vqa", "--model", "vqa", "--data", source, "--submission", "result.json")
    assert result.code == 0 and "result.json lacks 1 questions" in result.stderr
    assert "1 image left out:\n  rows.jsonl line 5: " in result.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0] | {"image": None}], "line 1: no image"),
        ([ROWS[0], ROWS[0] | {"question": ""}], "line 2: no question"),
        ([], "rows.jsonl: no rows"),
        ([ROWS[0] | {"image": "gone.png"}], "no image can be read; the first: "),
    ],
)
def test_questions_that_cannot_be_used(place: Path, tcl: Any, rows: list[dict[str, Any]], message: str) -> None:
    result = tcl("eval", "vqa", "--model", "vqa", "--data", write_rows("rows.jsonl", rows), "--predictions", "p.jsonl")
    assert result.code == 1 and message in result.stderr and not Path("p.jsonl").exists()


def test_one_name_for_two_files(place: Path, tcl: Any) -> None:
    source = write_rows("rows.jsonl", ROWS)
    both = ("--predictions", "x.json", "--submission", "./x.json")
    result = tcl("eval", "vqa", "--model", "vqa", "--data", source, *both)
    assert result.code == 2 and "--predictions and --submission are both x.json" in result.stderr
    result = tcl("eval", "vqa", "--model", "vqa", "--data", source, "--submission", source)
    assert result.code == 2 and "--submission rows.jsonl is the data itself" in result.stderr
