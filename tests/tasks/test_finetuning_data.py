"""Data of fine-tuning that cannot be used: one line that names the row, and nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcl.config.recipe import Recipe
from tcl.distributed.world import World
from tcl.errors import DataError, TclError, UsageError
from tcl.evaluation.held_out import HeldOut
from tcl.tasks.build import build_training
from tcl.training.reporter import Reporter
from tcl.training.trainer import Training
from tests.tasks.finetuning import question, recipe_for, scene, statement, write_rows


def train(recipe: Recipe, reporter: Reporter | None = None) -> Training:
    return build_training(recipe, World(), reporter=reporter)


class Listener(Reporter):
    """Remembers what is worth a warning."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def statements(task: str, *labels: str) -> list[dict[str, Any]]:
    return [statement(task, number, label) for number, label in enumerate(labels)]


def test_a_label_that_only_validation_has(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", statements("entailment", "yes", "no", "yes"))
    val = write_rows(tmp_path / "val.jsonl", statements("entailment", "no", "maybe"))
    with pytest.raises(DataError, match=r"val.jsonl line 2: unknown label 'maybe'") as error:
        train(recipe_for("entailment", tiny_model_folder, source, val))
    assert "known are no, yes" in str(error.value.hint)
    training = train(recipe_for("entailment", tiny_model_folder, source))
    with pytest.raises(DataError, match=r"val.jsonl line 2: unknown label 'maybe'"):
        HeldOut(training.recipe, [val]).check(training.model)


def test_published_labels_keep_their_order_and_own_ones_are_sorted(tiny_model_folder: Path, tmp_path: Path) -> None:
    for labels, expected in (
        (("entailment", "neutral"), ["contradiction", "neutral", "entailment"]),
        (("b10", "b2", "a"), ["a", "b2", "b10"]),
    ):
        source = write_rows(tmp_path / "train.jsonl", statements("entailment", *labels))
        assert train(recipe_for("entailment", tiny_model_folder, source)).model.head.labels == expected


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("entailment", [], "no rows"),
        ("entailment", statements("entailment", "yes", "yes"), "all rows have the label 'yes'"),
        ("entailment", [statement("entailment", 0, "")], "line 1: no label"),
        ("entailment", [statement("entailment", 0, "yes") | {"image": ""}], "line 1: no image"),
        ("nlvr2", [statement("nlvr2", 0, "True") | {"images": [scene(0)]}], "line 1: two images are needed"),
        ("vqa", [question(0, answers=[])], "line 1: no answer"),
        ("vqa", [question(0, image=None)], "line 1: no image"),
        ("vqa", [question(0, question=" ")], "line 1: no question"),
    ],
)
def test_rows_that_cannot_be_used(
    task: str, rows: list[Any], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(TclError, match=message):
        train(recipe_for(task, tiny_model_folder, source))


@pytest.mark.parametrize("task", ["entailment", "vqa"])
def test_an_empty_validation_split(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = statements(task, "yes", "no") if task == "entailment" else [question(0), question(1)]
    source, val = write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "val.jsonl", [])
    with pytest.raises(DataError, match=r"val.jsonl: no rows"):
        train(recipe_for(task, tiny_model_folder, source, val))


@pytest.mark.parametrize("task", ["entailment", "vqa"])
def test_validation_images_are_looked_at_before_training(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = statements(task, "yes", "no") if task == "entailment" else [question(0), question(1)]
    source = write_rows(tmp_path / "train.jsonl", rows)
    val = write_rows(tmp_path / "val.jsonl", [rows[0] | {"image": "gone.png"}])
    with pytest.raises(DataError, match=r"validation: none of the first 1 images .*gone.png"):
        train(recipe_for(task, tiny_model_folder, source, val))


def test_regions_to_validate_on_have_boxes(tiny_model_folder: Path, tmp_path: Path) -> None:
    val = write_rows(tmp_path / "val.jsonl", [{"image": scene(0), "text": "a circle"}])
    with pytest.raises(DataError, match="line 1: no box"):
        train(recipe_for("grounding", tiny_model_folder, "scenes:train:4", val))


def test_answers_outside_the_list(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", [question(number) for number in range(5)])
    (tmp_path / "answers.txt").write_text("blue\npurple\n")
    listener = Listener()
    recipe = recipe_for("vqa", tiny_model_folder, source, data={"answers": str(tmp_path / "answers.txt")})
    training = train(recipe, listener)
    assert training.model.head.labels == ["blue", "purple"]
    assert any("3 of 5 questions have no answer in the answer list" in text for text in listener.heard)
    (tmp_path / "answers.txt").write_text("purple\n")
    with pytest.raises(DataError, match=r"no question has an answer that is in the answer list; .*line 1: red"):
        train(recipe)
    with pytest.raises(UsageError, match="no such answer list"):
        train(recipe_for("vqa", tiny_model_folder, source, data={"answers": "absent.txt"}))


def test_the_most_frequent_answers_are_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", [question(number) for number in range(5)])
    training = train(recipe_for("vqa", tiny_model_folder, source, data={"max_answers": 2}))
    assert training.model.head.labels == ["red", "blue"]


def test_batches_of_questions_and_of_two_images(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "vqa.jsonl", [question(number) for number in range(3)])
    batch = next(train(recipe_for("vqa", tiny_model_folder, source)).loader.batches(0))
    assert batch.question_of_answer.tolist() == [0, 0, 1, 1, 2, 2] and batch.weights.tolist() == [0.5] * 6
    assert (batch.answer_ids[:, 0] == batch.input_ids[0, 0]).all() and batch.answer_ids.shape == batch.answer_mask.shape
    source = write_rows(tmp_path / "nlvr2.jsonl", statements("nlvr2", "true", "False", "TRUE"))
    batch = next(train(recipe_for("nlvr2", tiny_model_folder, source)).loader.batches(0))
    assert batch.images.shape == (6, 3, 32, 32) and sorted(batch.labels.tolist()) == [0, 1, 1]
    assert all(len(name.split(", ")) == 2 for name in batch.sample_ids)


def test_an_unreadable_second_image_takes_the_row_out(tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = statements("nlvr2", "True", "False", "True")
    rows[1]["images"][1] = "gone.png"
    recipe = recipe_for("nlvr2", tiny_model_folder, write_rows(tmp_path / "nlvr2.jsonl", rows))
    batch = next(train(recipe).loader.batches(0))
    assert len(batch.images) == 6 and [entry["image"].endswith("gone.png") for entry in batch.bad] == [True]


@pytest.mark.parametrize("kind", ["encoder", "half"])
def test_weights_that_lack_a_part(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from tcl.training.start_model import config_of

    state = load_file(tiny_model_folder / "model.safetensors")
    source = write_rows(tmp_path / "train.jsonl", statements("entailment", "yes", "no"))
    if kind == "encoder":
        vit = {name.removeprefix("visual_encoder."): t for name, t in state.items() if name.startswith("visual")}
        save_file(vit, tmp_path / "vit.safetensors")
        with pytest.raises(UsageError, match=r"an encoder \(ViT\), and fine-tuning starts from a whole model") as error:
            config_of(str(tmp_path / "vit.safetensors"))
        assert "tcl pretrain --data PAIRS --init" in str(error.value.hint)
        return
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    kept = {name: tensor for name, tensor in state.items() if ".crossattention." not in name}
    save_file(kept, tmp_path / "model/model.safetensors")
    with pytest.raises(TclError, match=r"missing \(text_encoder.bert.encoder.layer.2.crossattention"):
        train(recipe_for("entailment", tmp_path / "model", source))
