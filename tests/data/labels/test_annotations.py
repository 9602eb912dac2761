"""Rows of published, original and own files of labelled texts and questions, and what is wrong with bad ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcl.data.labels.questions import answer_list, read_answer_list, read_questions
from tcl.data.labels.statements import Statement, label_set, read_statements
from tcl.errors import DataError, UsageError

Write = Callable[[str, Any], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of rows, or of text, and return its path."""

    def write_file(name: str, content: Any) -> str:
        path = tmp_path / name
        if name.endswith(".jsonl") and not isinstance(content, str):
            content = "\n".join(json.dumps(row) for row in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write_file


def statements(*sources: str, task: Any = "entailment", **options: Any) -> list[Statement]:
    return list(read_statements(task, sources, **options))


# --- statements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "image"),
    [
        ("published.json", [{"image": "44653", "sentence": "A tree.", "label": "neutral"}], "44653.jpg"),
        (
            "snli_ve.jsonl",
            [
                {
                    "Flickr30K_ID": "44653",
                    "gold_label": "neutral",
                    "sentence1": "premise",
                    "sentence2": "A tree.",
                    "pairID": "44653.jpg#2r1n",
                }
            ],
            "44653.jpg",
        ),
        ("esnlive.csv", ",pairID,Flickr30kID,hypothesis,gold_label\n0,x,44653.jpg,A tree.,neutral\n", "44653.jpg"),
        ("own.csv", "image,text,label\na b/1.png,A tree.,neutral\n", "a b/1.png"),
        ("own.jsonl", [{"image": "1.png", "hypothesis": " A tree. ", "label": "neutral"}], "1.png"),
    ],
)
def test_entailment_files(write: Write, tmp_path: Path, name: str, content: Any, image: str) -> None:
    (row,) = statements(write(name, content))
    assert row.images == (str(tmp_path / image),)
    assert (row.text, row.label) == ("A tree.", "neutral")
    assert row.place.startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "images"),
    [
        (
            "published.json",
            [{"images": ["dev/a.png", "dev/b.png"], "sentence": "Two.", "label": "True"}],
            ("dev/a.png", "dev/b.png"),
        ),
        (
            "dev.jsonl",
            [{"identifier": "dev-850-0-1", "sentence": "Two.", "label": "True", "left_url": "http://x"}],
            ("dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"),
        ),
        (
            "train.jsonl",
            [{"identifier": "train-10171-0-0", "directory": 58, "sentence": "Two.", "label": "True"}],
            ("train/58/train-10171-0-img0.png", "train/58/train-10171-0-img1.png"),
        ),
        ("own.csv", "image0,image1,text,label\nx.png,y.png,Two.,true\n", ("x.png", "y.png")),
        ("own.jsonl", [{"image0": "x.png", "image1": "y.png", "text": "Two.", "label": True}], ("x.png", "y.png")),
    ],
)
def test_nlvr2_files(write: Write, tmp_path: Path, name: str, content: Any, images: tuple[str, str]) -> None:
    (row,) = statements(write(name, content), task="nlvr2")
    assert row.images == tuple(str(tmp_path / image) for image in images)
    assert (row.text, row.label) == ("Two.", "True")


def test_rows_without_consensus_are_passed_over(write: Write) -> None:
    rows = [
        {"image": "1.png", "text": "one", "gold_label": "-"},
        {"image": "2.png", "text": "two", "gold_label": "neutral"},
    ]
    assert [row.text for row in statements(write("a.jsonl", rows))] == ["two"]


def test_sources_keep_their_order_and_condition(write: Write, tmp_path: Path) -> None:
    first = write("a.csv", "image,text,label,split\n1.png,one,a,dev\n2.png,two,b,train\n")
    second = write("b.csv", "image,text,label\n3.png,three,a\n")
    rows = statements(f"{first}#split=train", second, images="/pictures")
    assert [row.images for row in rows] == [("/pictures/2.png",), ("/pictures/3.png",)]


ROW = {"image": "1.png", "text": "A tree.", "label": "a"}


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("entailment", {**ROW, "label": "neutrale"}, "unknown label 'neutrale'.*neutral"),
        ("entailment", {**ROW, "label": None}, "no label"),
        ("entailment", {**ROW, "label": ["a"]}, "a label is a text"),
        ("entailment", {**ROW, "image": ""}, "no image"),
        ("entailment", {**ROW, "image": 7.5}, "no image"),
        ("entailment", {**ROW, "text": " ", "label": "neutral"}, "no text"),
        ("nlvr2", ROW, "two images are needed, and it names 0"),
        ("nlvr2", {**ROW, "image0": "1.png"}, "two images are needed, and it names 1"),
        ("nlvr2", {**ROW, "images": ["1.png"]}, "two images are needed, and it names 1"),
        ("nlvr2", {**ROW, "images": "1.png"}, "two images are needed, and it names 1"),
        ("nlvr2", {**ROW, "images": ["1.png", None]}, "no image"),
        ("nlvr2", {**ROW, "identifier": "odd"}, "two images are needed, and it names 0"),
        ("entailment", ["a", "b"], "not an object but list"),
    ],
)
def test_a_bad_row_is_named(write: Write, task: Any, row: Any, says: str) -> None:
    source = write("bad.jsonl", [row])
    with pytest.raises(DataError) as caught:
        statements(source, task=task, labels=["neutral", "entailment"])
    message = f"{caught.value.message} {caught.value.hint}"
    assert re.search(says, message) and f"{source} line 1" in message, message


def test_empty_and_missing_sources(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        statements(write("empty.jsonl", ""))
    with pytest.raises(DataError, match="no row has split=test"):
        statements(write("a.csv", "image,text,label,split\n1.png,one,a,dev\n") + "#split=test")
    with pytest.raises(UsageError, match="no such file"):
        statements(str(tmp_path / "nowhere.json"))
    with pytest.raises(UsageError, match="takes no weight"):
        statements(write("c.csv", "image,text,label\n1.png,one,a\n") + "@2")
    with pytest.raises(UsageError, match="no file of annotations"):
        statements(str(tmp_path))
    with pytest.raises(DataError, match="more cells than columns"):
        statements(write("b.csv", "image,text,label\n1.png,one, two,a\n"))


def test_a_test_file_needs_no_labels(write: Write) -> None:
    (row,) = statements(write("test.csv", "image,text\n1.png,one\n"), need_labels=False)
    assert row.label is None


def test_label_sets() -> None:
    assert label_set("entailment", ["neutral", "entailment"]) == ["contradiction", "neutral", "entailment"]
    assert label_set("nlvr2", ["True", "False", "True"]) == ["False", "True"]
    assert label_set("entailment", ["grade 10", "grade 2", "neutral"]) == ["grade 2", "grade 10", "neutral"]
    with pytest.raises(DataError, match="'yes'"):
        label_set("entailment", ["yes", "yes"])


# --- questions -----------------------------------------------------------------------------------------------------


def test_published_questions(write: Write, tmp_path: Path) -> None:
    rows = [
        {"question_id": 7, "question": "Who?", "image": "a.jpg", "dataset": "vqa", "answer": ["man"] * 3 + ["boy"]},
        {"question_id": 8, "question": "Where?", "image": "b.jpg", "dataset": "vg", "answer": "home"},
        {"question_id": 9, "question": "What?", "image": "b.jpg", "answer": "tree"},
    ]
    first, second, third = read_questions([write("vqa.json", rows)])
    assert first.weights == {"man": 0.75, "boy": 0.25} and first.answers == ["man", "man", "man", "boy"]
    assert second.weights == {"home": 0.5}
    assert third.weights == {"tree": 1.0}
    assert (first.question_id, first.image, first.question) == (7, str(tmp_path / "a.jpg"), "Who?")


def test_own_questions(write: Write) -> None:
    table = write("own.csv", "image,question,answers\n1.png,How many?,2|two|2\n2.png,Red?,yes\n")
    lines = write("own.jsonl", [{"image": "1.png", "question": "How many?", "answer": 2}])
    rows = list(read_questions([table, lines]))
    assert [row.answers for row in rows] == [["2", "two", "2"], ["yes"], ["2"]]
    assert [row.question_id for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("subset", "image"),
    [
        ("val2014", "val2014/COCO_val2014_000000000042.jpg"),
        ("test-dev2015", "test2015/COCO_test2015_000000000042.jpg"),
    ],
)
def test_original_questions(write: Write, tmp_path: Path, order: tuple[int, int], subset: str, image: str) -> None:
    info = {"info": {"version": "2.0"}, "license": {"name": "x"}}
    questions = {
        **info,
        "data_subtype": subset,
        "questions": [
            {"image_id": 42, "question": "Is it?", "question_id": 42000},
            {"image_id": 42, "question": "How many?", "question_id": 42001},
        ],
    }
    people = [{"answer": "yes", "answer_confidence": "yes", "answer_id": 1}, {"answer": "no", "answer_id": 2}]
    annotations = {
        **info,
        "annotations": [
            {"question_id": 42001, "answers": [{"answer": "2"}], "answer_type": "number"},
            {"question_id": 42000, "answers": people, "answer_type": "yes/no", "multiple_choice_answer": "yes"},
        ],
    }
    files = [write("q.json", questions), write("a.json", annotations)]
    first, second = read_questions([files[order[0]], files[order[1]]])
    assert (first.question_id, first.answers, first.answer_type) == (42000, ["yes", "no"], "yes/no")
    assert (second.question_id, second.answers) == (42001, ["2"])
    assert first.image == str(tmp_path / image)

    with pytest.raises(DataError, match="no answer"):
        list(read_questions(files[:1]))
    assert [row.answers for row in read_questions(files[:1], need_answers=False)] == [[], []]
    with pytest.raises(DataError, match="answers without their questions"):
        list(read_questions(files[1:]))


ASKED = {"image": "1.png", "question": "Is it?", "answer": "yes"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ASKED, "answer": None}, "no answer"),
        ({**ASKED, "answer": []}, "no answer"),
        ({**ASKED, "answer": [" "]}, "no answer"),
        ({**ASKED, "image": None}, "no image"),
        ({**ASKED, "question": ""}, "no question"),
        ("text", "not an object but str"),
    ],
)
def test_a_bad_question_is_named(write: Write, row: Any, says: str) -> None:
    source = write("bad.json", [ASKED, row])
    with pytest.raises(DataError, match=says) as caught:
        list(read_questions([source]))
    assert f"{source} row 2" in caught.value.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"rows": []}', "neither questions nor annotations"),
        ('{"questions": [{"question_id": 1, ', "line 1: malformed JSON"),
        ('{"questions" []}', "Expecting ':'"),
        ('{"questions": [{"image": "1.png", "question": "Is it?"} {}]}', "Expecting ','"),
        ('{"annotations": [{}]} trailing', "Extra data"),
        ('{"questions": [{"question_id": 1, "question": "Is it?"}]}', "no image"),
        ("{", "malformed JSON"),
        ("", "malformed JSON"),
    ],
)
def test_bad_original_files(write: Write, content: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(read_questions([write("questions.json", content)], need_answers=False))


def test_answer_lists(write: Write) -> None:
    rows = [{**ASKED, "answer": answers} for answers in (["b", "b"], ["a"], ["c", "b"], "a")]
    questions = list(read_questions([write("rows.json", rows)]))
    assert answer_list(questions) == ["b", "a", "c"]
    assert answer_list(questions, limit=2) == ["b", "a"]
    assert read_answer_list(Path(write("answers.json", ["yes", "no"]))) == ["yes", "no"]
    assert read_answer_list(Path(write("answers.txt", "yes\n\n black and white \n"))) == ["yes", "black and white"]
    for content, says in (
        ([], "empty"),
        (["a", "a"], "row 2: 'a' is there already, in row 1"),
        ([1], "row 1: 1 is no"),
    ):
        with pytest.raises(DataError, match=says):
            read_answer_list(Path(write("answers.json", content)))
    with pytest.raises(UsageError, match="no such answer list"):
        read_answer_list(Path("nowhere.json"))
