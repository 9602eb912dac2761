"""What comes of a recipe before its training begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl.distributed.world import World
from tcl.errors import ConfigError
from tcl.tasks.build import build_training
from tcl.training.task import build_loader
from tests.tasks.finetuning import TASKS, recipe_for


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
