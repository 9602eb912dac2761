"""What comes of a recipe before its training begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tcl.distributed.world import World
from tcl.errors import ConfigError
from tcl.tasks.build import build_training
from tcl.training.task import build_loader
from tests.tasks.finetuning import TASKS, recipe_for, write_task


@pytest.mark.parametrize("task", ["pretrain", *TASKS])
def test_a_recipe_without_data_is_refused_before_a_model_is_built(task: str, tiny_model_folder: Path) -> None:
    recipe = recipe_for(task, tiny_model_folder, "")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": []})})
    rows = "pairs" if task == "pretrain" else f"rows of {task}"
    with pytest.raises(ConfigError, match=rf"data\.train names no {rows}"):
        build_training(recipe, World())


def test_a_step_takes_its_samples_of_all_processes_and_passes(tiny_model_folder: Path) -> None:
    recipe = recipe_for("pretrain", "", "scenes:train:50", data={"batch_size": 4}, train={"accumulate": 3})
    samples = build_training(recipe, World()).loader.samples
    loader = build_loader(samples, recipe, World(rank=1, size=2))
    assert loader.steps_per_epoch == 50 // (4 * 3 * 2)


@pytest.mark.parametrize("task", ["pretrain", *TASKS])
def test_what_is_measured_before_a_run_has_the_shapes_of_its_batches(
    task: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = write_task(tmp_path, "retrieval" if task == "pretrain" else task)
    training = build_training(recipe_for(task, tiny_model_folder, *data, data={"batch_size": 2, "workers": 0}), World())
    noise, batch = vars(training.task.synthetic_batch(2)), vars(next(iter(training.loader.batches(0))))
    assert noise.keys() == batch.keys()
    for name, tensor in batch.items():
        if isinstance(tensor, Tensor):
            assert (noise[name].dtype, noise[name].ndim) == (tensor.dtype, tensor.ndim), name
            of_answers = "answer" in name or name == "weights"  # how many an image has, only its rows say
            assert len(noise[name]) == 2 if of_answers else len(noise[name]) == len(tensor), name
    assert noise["images"].shape == batch["images"].shape
    length = 25 if task in ("pretrain", "text_assignment", "retrieval", "grounding", "vqa") else 30
    assert noise["input_ids"].shape == noise["attention_mask"].shape == (2, length)
    assert noise["attention_mask"].all()
