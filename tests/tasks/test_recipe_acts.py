"""What a recipe says acts in every task; nothing is trained for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tcl.config.recipe import ModelConfig
from tcl.data.pairs.table import read_pairs
from tcl.distributed.share import ALONE
from tcl.distributed.world import World
from tcl.errors import ConfigError
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.tasks.build import build_training
from tcl.training.reporter import Reporter
from tcl.training.trainer import Training
from tests.conftest import TINY, make_tiny_model
from tests.tasks.finetuning import TASKS, question, recipe_for, statement, write_rows, write_task
from tests.tasks.shares import in_processes

ALL_TASKS = ("pretrain", *TASKS)
VALIDATED = dict.fromkeys(ALL_TASKS, 6) | {"grounding": 5, "entailment": 5, "nlvr2": 10, "vqa": 5}  # images
CONTRASTIVE = ("pretrain", "retrieval", "grounding")


class Listener(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def data_of(folder: Path, task: str) -> tuple[str, str]:
    return write_task(folder, "retrieval" if task == "pretrain" else task)


def encoded_images(training: Training) -> list[int]:
    """How many images each pass of the image encoder sees from now on, in evaluations."""
    counts: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor]) -> None:
        assert not torch.is_grad_enabled()  # what is kept for a backward pass fills the memory
        counts.append(len(inputs[0]))

    training.model.visual_encoder.patch_embed.register_forward_pre_hook(count)
    return counts


@pytest.mark.parametrize("task", ALL_TASKS)
def test_validation_takes_batches_of_the_recipe_and_each_process_its_share(
    task: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(task, tiny_model_folder, *data_of(tmp_path, task), data={"batch_size": 2})
    training = build_training(recipe, World())
    counts = encoded_images(training)
    with training.evaluating():
        expected = training.task.validate(ALONE)
        images = sum(counts)
        assert max(counts) == 2 and images == VALIDATED[task]
        counts.clear()
        assert in_processes(2, training.task.validate) == [expected] * 2
    assert sum(counts) == images


@pytest.mark.parametrize("task", ALL_TASKS)
def test_with_and_without_validation_data(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Samples of the report are of the validation data; without any, of the training pairs where there are pairs."""
    train, val = data_of(tmp_path, task)
    of_train, of_val = (
        {pair.captions[0] for pair in read_pairs([source])} if task in CONTRASTIVE else set() for source in (train, val)
    )
    for source in (val, ""):
        task_of = build_training(recipe_for(task, tiny_model_folder, train, source), World()).task
        assert task_of.validates == bool(source)
        with torch.no_grad():
            samples = task_of.examples()
        if task in ("pretrain", "retrieval") or (task == "grounding" and not source):
            captions = {sample.caption for sample in samples}  # type: ignore[union-attr]
            assert captions and captions <= (of_val if source else of_train) and of_val.isdisjoint(of_train)
        else:
            assert bool(samples) == (bool(source) and task != "text_assignment")


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("task", ["pretrain", "retrieval", "vqa"])
def test_as_many_candidates_are_looked_at_as_the_recipe_says(
    task: str, top_k: int, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Of retrieval, pairs that are matched; of VQA, answers that are decoded: all of them, if it says 0."""
    settings = {"train": {"eval_top_k": top_k}, "data": {"batch_size": 2}}
    training = build_training(recipe_for(task, tiny_model_folder, *data_of(tmp_path, task), **settings), World())
    rows: list[int] = []
    model: Any = training.model
    part = model.text_decoder.bert.embeddings if task == "vqa" else model.itm_head
    part.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with training.evaluating():
        training.task.validate(ALONE)
    if task == "vqa":
        assert max(rows) == 2 * (top_k or len(model.head.labels)) and len(model.head.labels) > 2
    else:
        pairs = list(read_pairs(["scenes:val:6"]))
        texts = {text for pair in pairs for text in pair.captions}
        assert top_k * len(texts) <= sum(rows) <= top_k * (len(texts) + len(pairs))  # some pairs for both directions


@pytest.mark.parametrize("task", ALL_TASKS)
def test_queue_and_length_of_texts(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """As published, texts are cut in training where the task learns from captions or questions, but for retrieval."""
    model = make_tiny_model(max_length=4).config
    training = build_training(recipe_for(task, tiny_model_folder, *data_of(tmp_path, task), model=model), World())
    width = next(training.loader.batches(0)).input_ids.shape[1]
    assert width == 4 if task in ("pretrain", "text_assignment", "vqa") else width > 4
    queue = training.task.state_dict().get("queue", {})
    assert bool(queue) == (task in CONTRASTIVE) and training.task.candidates == (3 + 13 if queue else None)
    assert not queue or queue["image_queue"].shape == queue["text_queue"].shape == (16, 13)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_other_rows_are_noticed_on_resume(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sources = write_task(tmp_path, "retrieval" if task == "pretrain" else task)[0], ""
    other = "scenes:train:8"
    if sources[0].endswith(".jsonl"):
        lines = Path(sources[0]).read_text().splitlines(keepends=True)
        other = str(tmp_path / "other" / Path(sources[0]).name)
        Path(other).write_text("".join(lines[::-1]))
    checkpoint = build_training(recipe_for(task, tiny_model_folder, sources[0]), World()).save(tmp_path / "run")
    for source, noticed in ((sources[0], False), (other, True)):
        listener = Listener()
        build_training(recipe_for(task, tiny_model_folder, source), World(), checkpoint, listener)
        assert any("the training pairs changed" in text for text in listener.messages) == noticed


def test_other_classes_are_no_resume(tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = [statement("entailment", number, label) for number, label in enumerate(("yes", "no", "unclear"))]
    two, three = (
        recipe_for("entailment", tiny_model_folder, write_rows(tmp_path / f"{count}.jsonl", rows[:count]))
        for count in (2, 3)
    )
    checkpoint = build_training(two, World()).save(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"its weights do not fit this run: .*cls_head") as error:
        build_training(three, World(), checkpoint)
    assert "keeps its model and its classes" in str(error.value.hint)


@pytest.mark.parametrize(
    ("known", "found", "expected"),
    [
        (("yes", "no"), ("no", "yes"), ["yes", "no"]),
        (("yes", "maybe", "no"), ("no", "yes"), ["yes", "maybe", "no"]),
        (("yes", "no"), ("no", "yes", "maybe"), ["maybe", "no", "yes"]),
    ],
)
def test_the_classes_of_a_head_are_kept_while_they_do(
    known: tuple[str, ...], found: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    attach_head(make_tiny_model(), HeadConfig(task="entailment", labels=list(known))).save_pretrained(tmp_path / "m")
    rows = [statement("entailment", number, label) for number, label in enumerate(found)]
    training = build_training(
        recipe_for("entailment", tmp_path / "m", write_rows(tmp_path / "rows.jsonl", rows)), World()
    )
    assert training.model.head.labels == expected  # type: ignore[union-attr]


def test_the_decoder_of_answers(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As deep as the fusion encoder, or as it was. Answers are those of the data, the questions they belong to too."""
    source = write_rows(tmp_path / "rows.jsonl", [question(number) for number in range(3)])
    fresh: Any = build_training(recipe_for("vqa", tiny_model_folder, source), World()).model
    assert fresh.head.decoder_layers == 2 and {"red", "green", "blue"} <= set(fresh.head.labels)
    head = HeadConfig(task="vqa", labels=["red", "blue"], decoder_layers=1)
    attach_head(make_tiny_model(), head).save_pretrained(tmp_path / "m")
    known: Any = build_training(recipe_for("vqa", tmp_path / "m", source), World()).model
    assert known.head.decoder_layers == 1 and known.head.labels == fresh.head.labels


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_assignment_is_validated_on_every_pair_that_has_another_beside_it(
    batch_size: int, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """By first captions, with draws of the number of the batch's first row; thirteen pairs."""
    recipe = recipe_for(
        "text_assignment", tiny_model_folder, "scenes:train:9", "scenes:val:13", data={"batch_size": batch_size}
    )
    training = build_training(recipe, World())
    with torch.no_grad():
        training.model.ta_head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # type: ignore[union-attr, operator]
    pairs, size = list(read_pairs(["scenes:val:13"])), max(batch_size, 2)
    right = rows = 0
    with training.evaluating(), torch.no_grad():
        for first in range(0, 12, size):  # the last is alone
            batch = pairs[first : first + size]
            images = torch.from_numpy(training.model.processor.images([pair.image for pair in batch]))
            ids, mask = training.model.processor.texts([pair.captions[0] for pair in batch])
            draws = torch.Generator().manual_seed(first)
            accuracy = training.objective(images, torch.from_numpy(ids), torch.from_numpy(mask).bool(), draws).accuracy
            right, rows = right + round(accuracy.item() * size), rows + size
        assert rows == 12
        assert training.task.validate(ALONE)["accuracy"] == pytest.approx(100 * right / rows) and 0 < right < 12


def test_text_assignment_of_one_pair_alone_says_nothing(tiny_model_folder: Path) -> None:
    training = build_training(
        recipe_for("text_assignment", tiny_model_folder, "scenes:train:9", "scenes:val:1"), World()
    )
    assert training.task.validate(ALONE) == {"accuracy": 0.0}


def without_draws() -> ModelConfig:
    return make_tiny_model(text_encoder_args=TINY["text_encoder_args"] | {"dropout": 0.0}).config


def test_gradients_are_means_over_the_passes_of_a_step(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = write_task(tmp_path, "entailment")[0]
    changes = {"loss": {"alpha": 0}, "optim": {"clip_norm": None}}
    norms = []
    for passes in (1, 2):
        recipe = recipe_for("entailment", tiny_model_folder, source, model=without_draws(), **changes)
        training = build_training(recipe, World())
        training.train_step([next(training.loader.batches(0))] * passes)
        norms.append(training.grad_norm.item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0


def test_the_seed_decides_weights_order_and_draws(tiny_model_folder: Path) -> None:
    one, same, other = (
        build_training(recipe_for("pretrain", "", "scenes:train:9", train={"seed": seed}), World())
        for seed in (1, 1, 2)
    )
    for training, equal in ((same, True), (other, False)):
        assert torch.equal(training.model.vision_proj.weight, one.model.vision_proj.weight) == equal
        ids = [next(each.loader.batches(0)).sample_ids for each in (one, training)]
        assert (ids[0] == ids[1]) == equal
    state = copy.deepcopy(one.model.state_dict())
    others = copy.deepcopy(one.task.state_dict())
    batch, losses = next(one.loader.batches(0)), []
    for training in (one, same, other):
        training.model.load_state_dict(state)
        training.task.load_state_dict(others)
        losses.append({name: value.item() for name, value in training.train_step([batch]).items()})
    assert losses[0] == losses[1]
    assert all(losses[0][name] != losses[2][name] for name in ("mlm", "itm", "cma_i2t"))
