"""What the training of every task draws: views, dropout, masks. The recipe differs from the defaults everywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tcl.data.images.augment import Transform
from tcl.distributed.world import World
from tcl.tasks.build import build_training
from tcl.training.loop import fit
from tcl.training.reporter import Reporter
from tcl.training.trainer import Training
from tests.chance import follows, is_rate
from tests.conftest import TINY, make_tiny_model
from tests.models.test_dropout import check_drops, watch
from tests.tasks.finetuning import TASKS, recipe_for, write_task

RATE, MASKED, MIN_SCALE = 0.3, 0.6, 0.7
ALL_TASKS = ("pretrain", *TASKS)
TWO_VIEWS = ("pretrain", "retrieval", "grounding")


def training_of(task: str, folder: Path, init: Path, **train: Any) -> Training:
    data = write_task(folder, "retrieval" if task == "pretrain" else task)
    model = make_tiny_model(text_encoder_args=TINY["text_encoder_args"] | {"dropout": RATE}).config
    changes = {
        "data": {"augment": "published", "min_scale": MIN_SCALE},
        "loss": {"mlm_probability": MASKED, "alpha_ramp": False},
        "train": train,
    }
    return build_training(recipe_for(task, init, *data, model=model, **changes), World())


@pytest.fixture(scope="module")
def trainings(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """A run of each task before its first step; do not change it."""
    folder = tmp_path_factory.mktemp("tasks")
    return {task: training_of(task, folder, tiny_model_folder) for task in ALL_TASKS}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_all_that_computes_a_loss_is_in_training_mode(trainings: dict[str, Training], task: str) -> None:
    """The teacher too: its dropout makes the twin of a text."""
    objective = trainings[task].objective
    assert all(module.training for module in objective.modules())
    assert any(name.startswith("teacher") for name, _ in objective.named_modules()) == (
        task not in ("text_assignment", "vqa")
    )


@pytest.mark.parametrize("task", ALL_TASKS)
def test_every_encoder_drops_at_the_rate_of_the_recipe(trainings: dict[str, Training], task: str) -> None:
    """Doubled fusion layers and the decoder of answers too, and what the teacher computes."""
    training = trainings[task]
    objective, batch = copy.deepcopy(training.objective), next(training.loader.batches(0))
    seen = watch(objective, RATE)
    with torch.no_grad():
        for seed in range(6):
            torch.manual_seed(seed)
            training.task.losses(objective, batch, 0.4, seed)
    training.task.discard_step()
    # Features alone come from the teacher of retrieval: nothing is fused.
    unused = ("teacher.model.text_encoder.bert.encoder.layer.2", "teacher.model.text_encoder.bert.encoder.layer.3")
    expected = [place for place in seen if not (task in TWO_VIEWS[1:] and place.startswith(unused))]
    for place, values in seen.items():
        assert bool(values) == (place in expected), place
    for place in expected:
        check_drops(seen[place], RATE, place)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_views_of_a_sample(trainings: dict[str, Training], task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two where features are contrasted, of one image; else one of each image, and those in the order of the text."""
    made: list[tuple[Any, list[torch.Tensor]]] = []
    views = Transform.views

    def remember(self: Transform, source: Any, count: int) -> list[torch.Tensor]:
        made.append((source, views(self, source, count)))
        return made[-1][1]

    monkeypatch.setattr(Transform, "views", remember)
    batch = next(trainings[task].loader.batches(0))
    counts = [len(of_image) for _, of_image in made]
    firsts = torch.stack([of_image[0] for _, of_image in made])
    if task in TWO_VIEWS:
        assert counts == [2] * len(batch.images) and len(firsts) == len(batch.images)
        assert torch.equal(batch.images, firsts)
        assert torch.equal(batch.images_aug, torch.stack([of_image[1] for _, of_image in made]))
        assert not torch.equal(batch.images, batch.images_aug)
    else:
        assert counts == [1] * len(batch.images)
        images = [firsts[0::2], firsts[1::2]] if task == "nlvr2" else [firsts]
        assert torch.equal(batch.images, torch.cat(images))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_crops_are_those_of_the_recipe(trainings: dict[str, Training], task: str) -> None:
    crop = trainings[task].loader.samples.transform.crop
    crops = [crop(1000, 1000) for _ in range(200)]
    areas = [(right - left) * (low - up) / 1e6 for left, up, right, low in crops]
    assert MIN_SCALE - 0.01 < min(areas) < MIN_SCALE + 0.03


@pytest.mark.parametrize("task", [*TWO_VIEWS, "text_assignment"])
def test_every_caption_of_an_image_is_as_likely(
    trainings: dict[str, Training], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transform, "views", lambda self, source, count: [torch.zeros(3, 1, 1)] * count)
    samples: Any = trainings[task].loader.samples
    captions = samples.index[0].captions
    assert len(captions) > 2
    torch.manual_seed(0)
    drawn = [samples.load(0) for _ in range(600)]
    numbers = torch.tensor([captions.index(getattr(sample, "pair", sample)[-1]) for sample in drawn])
    assert follows(numbers.bincount(minlength=len(captions)), torch.ones(len(captions)))


def test_masks_are_those_of_recipe_and_vocabulary(trainings: dict[str, Training]) -> None:
    training = trainings["pretrain"]
    tokenizer, batch = training.model.processor.tokenizer, next(training.loader.batches(0))
    words = batch.attention_mask & (batch.input_ids != tokenizer.cls_id)
    of_words = batch.input_ids[words]
    after = []

    def objective(*inputs: Any) -> Any:
        assert torch.equal(inputs[2], batch.input_ids) and torch.equal(inputs[3], batch.attention_mask)
        masked = inputs[4]
        chosen = torch.zeros(words.numel(), dtype=torch.bool).index_fill(0, masked.positions, True).view_as(words)
        assert not (chosen & ~words).any()
        assert torch.equal(masked.labels, batch.input_ids[chosen])
        assert torch.equal(masked.input_ids[~chosen], batch.input_ids[~chosen])
        after.append(masked.input_ids[words].masked_fill(~chosen[words], -1))
        return None, batch.images, batch.images

    for seed in range(2000):
        training.task.losses(objective, batch, 0.4, seed)
    training.task.discard_step()
    drawn = torch.stack(after)
    changed = drawn[drawn >= 0]
    assert is_rate(len(changed), drawn.numel(), MASKED)
    size = tokenizer.vocab_size
    becomes = 0.1 / size + 0.1 * of_words.bincount(minlength=size) / len(of_words)
    becomes[tokenizer.mask_id] += 0.8
    assert follows(changed.bincount(minlength=size), becomes)


class Modes(Reporter):
    """Notes, after each step, whether all was in training mode."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.of_steps: list[bool] = []

    def stepped(self, step: int) -> None:
        assert self.training is not None
        self.of_steps.append(all(module.training for module in self.training.objective.modules()))


@pytest.mark.parametrize("task", ["pretrain", "text_assignment"])
def test_validation_and_report_give_the_model_back_in_training_mode(
    task: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    training = training_of(task, tmp_path, tiny_model_folder, steps=3)
    with training.evaluating():
        assert not any(module.training for module in training.model.modules())
    assert all(module.training for module in training.objective.modules())
    training.reporter = modes = Modes()
    modes.training = training
    fit(training, tmp_path / "run")  # validates, saves and reports after every step
    assert modes.of_steps == [True] * 3
