"""Evaluation on rows: the same as one row at a time, each image looked at once, bad images named."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
import torch

from tcl.data.labels.questions import Question
from tcl.data.labels.statements import Statement
from tcl.errors import DataError
from tcl.evaluation.statements import evaluate_statements, tokenize_statements
from tcl.evaluation.vqa import evaluate_vqa, rank_answers, tokenize_answers, tokenize_questions
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tests.conftest import TINY, make_tiny_model

IMAGES = [f"scenes:train:0:{number}" for number in range(4)]
LABELS = ["left", "right", "neither", "inside", "below", "behind", "near"]
ANSWERS = ["red", "blue", "a star", "2", "yes", "no", "green"]


@pytest.fixture(scope="module", params=["entailment", "nlvr2"])
def statement_model(request: pytest.FixtureRequest, tiny_model: TCL) -> Any:
    torch.manual_seed(1)
    return attach_head(copy.deepcopy(tiny_model), HeadConfig(task=request.param, labels=LABELS)).eval()


def statements(model: Any) -> list[Statement]:
    texts = ["a red circle", "a blue square left of a star", "a star", "two stars", "a red circle on top"]
    first, second = [0, 1, 0, 2, 0], [1, 2, 1, 2, 3]
    images = [(IMAGES[a], IMAGES[b])[: model.images_per_text] for a, b in zip(first, second, strict=True)]
    labels = ["left", "right", "left", None, "neither"]
    rows = zip(images, texts, labels, strict=True)
    return [Statement(f"rows line {i}", *row) for i, row in enumerate(rows)]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_statements_one_by_one(statement_model: Any, batch_size: int) -> None:
    model, rows = statement_model, statements(statement_model)
    result = evaluate_statements(model, rows, batch_size=batch_size, workers=1, top=3)
    assert [row["text"] for row in result.predictions] == [row.text for row in rows]
    right = 0
    for row, prediction in zip(rows, result.predictions, strict=True):
        with torch.no_grad():
            images = model.image_key_values(model.encode_image(model.processor.images(row.images)).image_embeds)
            shares = model.classify(images, *tokenize_statements(model, [row.text])).softmax(dim=1)[0]
        best = int(shares.argmax())
        assert prediction["predicted"] == LABELS[best]
        assert prediction["confidence"] == pytest.approx(shares[best].item(), abs=1e-5)
        order = shares.argsort(descending=True)[:3]
        assert [entry["label"] for entry in prediction["top"]] == [LABELS[number] for number in order]
        assert [entry["confidence"] for entry in prediction["top"]] == pytest.approx(shares[order].tolist(), abs=1e-5)
        assert (prediction["images"], prediction["label"]) == (list(row.images), row.label)
        right += row.label == LABELS[best]
    assert result.accuracy == pytest.approx(100 * right / 4)  # the row without a label is not counted
    assert [line.rows for line in result.classes] == [2, 1, 1, 0, 0, 0, 0]
    said = [row["predicted"] for row in result.predictions if row["label"]]
    assert [line.precision for line in result.classes] == [
        pytest.approx(
            100 * sum(row["label"] == row["predicted"] == label for row in result.predictions) / said.count(label)
        )
        if label in said
        else None
        for label in LABELS
    ]
    json.dumps(result.predictions)


def test_an_image_is_read_once(statement_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tcl.evaluation import batches as decoding

    read: Counter[str] = Counter()
    decode = decoding.decode

    def counting(reference: Any) -> Any:
        read[reference] += 1
        return decode(reference)

    monkeypatch.setattr(decoding, "decode", counting)
    done: list[int] = []
    evaluate_statements(statement_model, statements(statement_model), workers=1, progress=done.append)
    assert sum(done) == 5
    if statement_model.images_per_text == 1:
        assert set(read.values()) == {1}
    else:
        assert sum(read.values()) == 8  # four different pairs


def test_images_that_cannot_be_read_are_named(statement_model: Any) -> None:
    rows = statements(statement_model)
    missing = ("/nowhere.png",) * statement_model.images_per_text
    rows[1] = rows[1]._replace(images=(*rows[1].images[:-1], "/nowhere.png"))
    result = evaluate_statements(statement_model, rows, workers=1)
    assert len(result.predictions) == 4
    assert [(entry["row"], entry["image"]) for entry in result.bad] == [("rows line 1", "/nowhere.png")]
    with pytest.raises(DataError, match=r"no image can be read; the first: /nowhere\.png"):
        evaluate_statements(statement_model, [rows[0]._replace(images=missing)], workers=1)


def test_labels_that_the_model_does_not_know(statement_model: Any) -> None:
    rows = statements(statement_model)
    rows[2] = rows[2]._replace(label="above")
    with pytest.raises(DataError, match="rows line 2: unknown label 'above'"):
        evaluate_statements(statement_model, rows)


def test_a_test_file_without_labels(statement_model: Any) -> None:
    rows = [row._replace(label=None) for row in statements(statement_model)]
    result = evaluate_statements(statement_model, rows, workers=1)
    assert result.accuracy is None and result.classes == []
    assert [len(row["top"]) for row in result.predictions] == [5] * 5


def test_sums_of_mixed_precision(statement_model: Any, vqa_model: Any) -> None:
    """Likelihoods are computed in float32 from logits of half the bits: their sum is one, not nearly so."""
    with torch.autocast("cpu", torch.bfloat16):
        said = evaluate_statements(statement_model, statements(statement_model), workers=1, top=100).predictions
        answered = evaluate_vqa(vqa_model, questions(), workers=1, top=100).predictions
    for row in said + answered:
        assert sum(entry["confidence"] for entry in row["top"]) == pytest.approx(1, abs=1e-6)


LONG = TINY | {"text_encoder_args": TINY["text_encoder_args"] | {"max_position_embeddings": 60}}


@pytest.mark.parametrize(("task", "words"), [("entailment", 30), ("nlvr2", 40), ("vqa", 50)])
def test_long_texts_lose_their_end(task: Any, words: int) -> None:
    """As published; and to as many tokens as the model has positions, where these are fewer."""
    text = "a " * 200
    for changes, most in ((LONG, 60), (TINY, 40)):
        model: Any = attach_head(make_tiny_model(**changes), HeadConfig(task=task, labels=LABELS, decoder_layers=1))
        tokenize = tokenize_questions if task == "vqa" else tokenize_statements
        ids, mask = tokenize(model, [text, "a"])
        assert ids.shape[1] == min(words + 1, most) and mask.sum(dim=1).tolist() == [ids.shape[1], 2]
    if task == "vqa":
        assert tokenize_questions(model, [text], 25)[0].shape[1] == 25


@pytest.fixture(scope="module")
def vqa_model(tiny_model: TCL) -> Any:
    torch.manual_seed(1)
    head = HeadConfig(task="vqa", labels=ANSWERS, decoder_layers=2)
    return attach_head(copy.deepcopy(tiny_model), head).eval()


def questions() -> list[Question]:
    asked = [
        (0, "What colour?"),
        (1, "How many stars?"),
        (0, "Is there a star" + " or a star" * 10),
        (2, "What is at the top?"),
    ]
    people: list[list[str]] = [["red"] * 10, ["two"] * 10, ["yes", "no"] * 5, []]
    return [
        Question(f"rows line {i}", 100 + i, IMAGES[image], question, answers, {}, None)
        for i, ((image, question), answers) in enumerate(zip(asked, people, strict=True))
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_questions_one_by_one(vqa_model: Any, batch_size: int) -> None:
    result = evaluate_vqa(vqa_model, questions(), batch_size=batch_size, workers=1, top=2)
    answers = tokenize_answers(ANSWERS, vqa_model.processor.tokenizer)
    for row, prediction in zip(questions(), result.predictions, strict=True):
        with torch.no_grad():
            embeds = vqa_model.encode_image(vqa_model.processor.images([row.image])).image_embeds
            asked = vqa_model.ask(vqa_model.image_key_values(embeds), *tokenize_questions(vqa_model, [row.question]))
            ranking = rank_answers(vqa_model, asked, answers, 128)
        assert prediction["question_id"] == row.question_id
        assert prediction["answer"] == ANSWERS[int(ranking.answers[0, 0])]
        assert prediction["confidence"] == pytest.approx(ranking.probabilities[0, 0].item(), abs=1e-5)
        assert (prediction["image"], prediction["question"]) == (row.image, row.question)
        assert [entry["answer"] for entry in prediction["top"]] == [ANSWERS[n] for n in ranking.answers[0, :2]]
        shares = [entry["confidence"] for entry in prediction["top"]]
        assert shares == pytest.approx(ranking.probabilities[0, :2].tolist(), abs=1e-5)
    assert result.submission() == [
        {"question_id": row["question_id"], "answer": row["answer"]} for row in result.predictions
    ]
    json.dumps(result.predictions)


def test_answers_that_are_decoded_and_listed(tiny_model: TCL) -> None:
    """Unless told otherwise 128 of the list, as published, and 5."""
    torch.manual_seed(1)
    head = HeadConfig(task="vqa", labels=["red " * 60, *(f"red {n}" for n in range(139))], decoder_layers=1)
    model: Any = attach_head(copy.deepcopy(tiny_model), head).eval()
    for options, listed in (
        ({}, 5),
        ({"top": 999}, 128),
        ({"top": 999, "top_k": 7}, 7),
        ({"top": 999, "top_k": 999}, 140),
    ):
        result = evaluate_vqa(model, questions()[:1], workers=1, **options)
        assert len(result.predictions[0]["top"]) == listed


def test_figures_of_answers(vqa_model: Any) -> None:
    rows = questions()
    first = evaluate_vqa(vqa_model, rows, workers=1)
    said = [prediction["answer"] for prediction in first.predictions]
    rows[0] = rows[0]._replace(answers=[f"{said[0].upper()}."] * 10, answer_type="what")
    rows[1] = rows[1]._replace(answers=["seven"] * 10)
    rows[2] = rows[2]._replace(answers=[said[2]] * 2 + ["something"] * 8, answer_type="what")
    result = evaluate_vqa(vqa_model, rows, workers=1)
    assert result.accuracy == pytest.approx((100 + 0 + 60) / 3)
    assert list(result.by_type.items()) == [("number", (0, 1)), ("what", (pytest.approx(80), 2))]
    assert result.outside == 1  # "seven"; where nobody answered, nothing is counted
    assert result.predictions[3]["accuracy"] is None
    nobody = evaluate_vqa(vqa_model, [row._replace(answers=[]) for row in rows], workers=1)
    assert nobody.accuracy is None and nobody.by_type == {} and len(nobody.predictions) == 4


def test_questions_about_images_that_cannot_be_read(vqa_model: Any) -> None:
    rows = questions()
    rows[1] = rows[1]._replace(image="/nowhere.png")
    result = evaluate_vqa(vqa_model, rows, workers=1)
    assert [row["question_id"] for row in result.predictions] == [100, 102, 103]
    assert result.bad[0]["row"] == "rows line 1"
    with pytest.raises(DataError, match=r"no image can be read; the first: /nowhere\.png"):
        evaluate_vqa(vqa_model, rows[1:2], workers=1)
