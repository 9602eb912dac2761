"""`tcl finetune` from the command line: the run that comes out, what its model is good for, and every wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import TINY
from tests.tasks.finetuning import question, scene, statement, write_rows

QUICK = ("train.steps=2", "data.workers=0", "data.batch_size=3")


@pytest.fixture
def place(workplace: Path) -> Path:
    """The working directory, with a model in `runs/tiny` and data for two tasks."""
    labels = ("yes", "no", "unclear")
    rows = [statement("entailment", number, labels[number % 3]) for number in range(6)]
    write_rows(workplace / "train.jsonl", rows)
    write_rows(workplace / "val.jsonl", rows[:3])
    write_rows(workplace / "questions.jsonl", [question(number) for number in range(5)])
    return workplace


def test_train_validate_test_and_use(place: Path, tcl: Any) -> None:
    write_rows(place / "test.jsonl", [statement("entailment", 0, "yes")])
    split = ("--data", "train.jsonl", "--val", "val.jsonl", "--test", "test.jsonl")
    result = tcl("finetune", "entailment", *split, *QUICK)
    assert result.code == 0, result.stderr
    assert "6 statements, 2 steps of 3 per epoch" in result.stderr and "accuracy" in result.stderr
    assert "accuracy" in result.stdout
    run = Path("runs/entailment")
    prediction = json.loads((run / "predictions.jsonl").read_text())
    assert prediction["label"] == "yes" and {entry["label"] for entry in prediction["top"]} == {"yes", "no", "unclear"}
    assert json.loads((run / "test.json").read_text())["accuracy"] in (0, 100)
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert recipe["task"] == "entailment" and recipe["model"]["embed_dim"] == TINY["embed_dim"]
    assert recipe["model"]["init"] == "runs/tiny/model"

    assert tcl("embed", "images", "--out", "vecs.npy", "--model", str(run)).code == 0
    assert np.load("vecs.npy").shape == (3, 16)
    found = tcl("search", "a circle", "--index", "vecs.npy", "--model", str(run), "--rerank", "2")
    assert found.code == 0, found.stderr
    described = json.loads(tcl("inspect", str(run), "--json").stdout)
    assert described["architecture"]["task"] == "entailment" and described["problem"] is None
    exported = tcl("export", "--model", str(run))
    assert exported.code == 0, exported.stderr


def test_labels_that_differ_in_spelling_only_are_shown_before_training(place: Path, tcl: Any) -> None:
    rows = [statement("entailment", number, label) for number, label in enumerate(["Yes", "yes", "no ", "no"] * 3)]
    write_rows(place / "spelt.jsonl", rows)
    result = tcl("finetune", "entailment", "--data", "spelt.jsonl", *QUICK, "--dry-run")
    assert result.code == 0, result.stderr
    assert "Classes    3: no 6, Yes 3, yes 3\n" in result.stderr
    assert (
        "Warning: labels that differ in case or spaces only are learned as different ones: 'Yes' (3) and 'yes' (3)\n"
    ) in result.stderr
    write_rows(place / "right.jsonl", [row | {"label": row["label"].strip().lower()} for row in rows])
    right = tcl("finetune", "entailment", "--data", "right.jsonl", *QUICK, "--dry-run")
    assert "Classes    2: no 6, yes 6\n" in right.stderr and "Warning: labels" not in right.stderr


def test_answers_are_counted_and_compared_too(place: Path, tcl: Any) -> None:
    rows = [question(number, answers=[answer]) for number, answer in enumerate(["Dog", "dog", "big cat", "big  cat"])]
    write_rows(place / "spelt.jsonl", rows)
    result = tcl("finetune", "vqa", "--data", "spelt.jsonl", *QUICK, "--dry-run")
    assert result.code == 0, result.stderr
    assert "Classes    4: Dog 1, big  cat 1, big cat 1, dog 1\n" in result.stderr
    assert "Warning: answers that differ in case or spaces only are learned as different ones: " in result.stderr
    assert "'Dog' (1) and 'dog' (1); 1 more such groups" in result.stderr


def test_a_model_for_two_images_embeds_and_exports(place: Path, tcl: Any) -> None:
    write_rows(
        place / "pairs.jsonl", [statement("nlvr2", number, ("True", "False")[number % 2]) for number in range(4)]
    )
    result = tcl("finetune", "nlvr2", "--model", "runs/tiny", "--data", "pairs.jsonl", *QUICK)
    assert result.code == 0, result.stderr
    assert tcl("embed", "images", "--out", "vecs.npy", "--model", "runs/nlvr2").code == 0
    assert tcl("search", "a circle", "--index", "vecs.npy", "--model", "runs/nlvr2", "--rerank", "2").code == 0
    assert tcl("export", "--model", "runs/nlvr2").code == 0


def test_resume_continues_the_run_with_its_own_recipe(place: Path, tcl: Any) -> None:
    command = ("finetune", "vqa", "--model", "runs/tiny", "--data", "questions.jsonl", "--out", "runs/a", "--resume")
    first = tcl(*command, *QUICK)
    assert first.code == 0 and "Nothing to resume in runs/a: starting." in first.stderr
    longer = tcl("finetune", "vqa", "--out", "runs/a", "--resume", "train.steps=3")
    assert longer.code == 0 and "Continuing runs/a at step 2." in longer.stderr
    same = tcl(*command, *QUICK)
    assert same.code == 0 and "runs/a is finished" in same.stderr
    tested = tcl("finetune", "vqa", "--out", "runs/a", "--resume", "--test", "questions.jsonl")
    assert tested.code == 0 and "accuracy" in tested.stdout and Path("runs/a/predictions.jsonl").is_file()


def test_image_size_and_length_may_differ_from_the_model(place: Path, tcl: Any) -> None:
    settings = ("model.image_size=[48,32]", "model.max_length=8")
    result = tcl("finetune", "vqa", "--data", "questions.jsonl", *QUICK, *settings)
    assert result.code == 0, result.stderr
    assert "48 x 32 px" in result.stderr
    described = json.loads(tcl("inspect", "runs/vqa", "--json").stdout)["architecture"]
    assert described["image_size"] == [48, 32] and described["max_length"] == 8


def test_from_no_model(place: Path, tcl: Any) -> None:
    small = {
        "task": "vqa",
        "model": TINY,
        "train": {"steps": 2, "log_every": 1},
        "data": {"workers": 0, "batch_size": 3},
    }
    Path("small.yaml").write_text(yaml.safe_dump(small))
    result = tcl("finetune", "vqa", "small.yaml", "--scratch", "--data", "questions.jsonl")
    assert result.code == 0, result.stderr
    assert yaml.safe_load(Path("runs/small/config.yaml").read_text())["model"]["init"] is None
    both = tcl("finetune", "vqa", "small.yaml", "--scratch", "--model", "runs/tiny", "--data", "questions.jsonl")
    assert both.code == 2 and "--scratch starts from no model" in both.stderr


def test_dry_run_writes_nothing(place: Path, tcl: Any) -> None:
    result = tcl("finetune", "grounding", "--data", "scenes:train:6", "--val", "scenes:val:2", *QUICK, "--dry-run")
    assert result.code == 0 and "nothing was written" in result.stderr, result.stderr
    assert not Path("runs/grounding").exists()


def test_text_assignment_is_a_pretraining(place: Path, tcl: Any) -> None:
    Path("ta.yaml").write_text(yaml.safe_dump({"task": "text_assignment", "model": TINY, "data": {"augment": "mild"}}))
    result = tcl("pretrain", "ta.yaml", "--init", "runs/tiny", "--data", "scenes:train:6", *QUICK)
    assert result.code == 0, result.stderr
    rows = [statement("nlvr2", number, ("True", "False")[number % 2]) for number in range(4)]
    write_rows(place / "pairs.jsonl", rows)
    result = tcl("finetune", "nlvr2", "--model", "runs/ta", "--data", "pairs.jsonl", *QUICK)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected", "hint"),
    [
        (
            ["vqa", "snli-ve"],
            "snli-ve is a recipe of the task entailment, not of vqa",
            "tcl finetune entailment snli-ve",
        ),
        (["nlvr2", "nlvr2-ta"], "a recipe of the task text_assignment", "tcl pretrain nlvr2-ta"),
        (["retrieval", "small"], "a recipe of the task pretrain", "tcl pretrain small"),
        (["entailment", "--model", "absent"], "absent: no such model", ""),
        (["entailment", "--data", "absent.jsonl"], "absent.jsonl", ""),
        (["entailment"], "data.train names no rows of entailment", "--data"),
        (["classify"], "classify", ""),
        (["entailment", "model.embed_dim=8", "--data", "train.jsonl"], "do not fit the recipe", "`model` section"),
        (["entailment", "--data", "train.jsonl", "--test", "absent.jsonl"], "absent.jsonl", ""),
        (["entailment", "model.image_size=8", "--data", "train.jsonl"], "a side is 16 to 1024 pixels", ""),
        (["entailment", "model.image_size=[32,32,32]", "--data", "train.jsonl"], "[height, width]", ""),
    ],
)
def test_wrong_usage_is_one_line(place: Path, tcl: Any, arguments: list[str], expected: str, hint: str) -> None:
    result = tcl("finetune", *arguments)
    assert result.code in (1, 2), result.stderr
    assert expected in result.stderr and hint in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert [path.name for path in Path("runs").iterdir()] == ["tiny"]


def test_pretrain_refuses_recipes_with_labels(place: Path, tcl: Any) -> None:
    result = tcl("pretrain", "retrieval-coco")
    assert result.code == 2 and "tcl finetune retrieval retrieval-coco" in result.stderr


def test_a_label_in_the_test_split_that_the_model_will_not_know(place: Path, tcl: Any) -> None:
    write_rows(place / "test.jsonl", [statement("entailment", 0, "perhaps")])
    result = tcl("finetune", "entailment", "--data", "train.jsonl", "--test", "test.jsonl", *QUICK)
    assert result.code == 1 and "test.jsonl line 1: unknown label 'perhaps'" in result.stderr
    assert not Path("runs/entailment").exists()


def test_a_row_with_one_image(place: Path, tcl: Any) -> None:
    write_rows(place / "pairs.jsonl", [statement("nlvr2", 0, "True") | {"images": [scene(0)]}])
    result = tcl("finetune", "nlvr2", "--data", "pairs.jsonl", *QUICK)
    assert result.code == 1 and "two images are needed, and it names 1" in result.stderr
