"""From a recipe to its training, by the task that the recipe names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcl.config.recipe import Recipe, TaskName
from tcl.distributed.world import World
from tcl.tasks.pretraining import Pretraining
from tcl.tasks.retrieval import GroundingTraining, RetrievalTraining
from tcl.tasks.statements import StatementTraining
from tcl.tasks.text_assignment import TextAssignmentTraining
from tcl.tasks.vqa import VqaTraining
from tcl.training.preflight import check_named
from tcl.training.reporter import Reporter
from tcl.training.task import Task
from tcl.training.trainer import Training

TASKS: dict[TaskName, Callable[..., Any]] = {
    "pretrain": Pretraining,
    "text_assignment": TextAssignmentTraining,
    "retrieval": RetrievalTraining,
    "grounding": GroundingTraining,
    "entailment": StatementTraining,
    "nlvr2": StatementTraining,
    "vqa": VqaTraining,
}


def build_training(
    recipe: Recipe, world: World, checkpoint: Path | None = None, reporter: Reporter | None = None
) -> Training:
    """The training of a recipe, whatever its task; see `Training`."""
    return Training(recipe, world, build_task, checkpoint, reporter)


def build_task(recipe: Recipe, world: World, checkpoint: Path | None, reporter: Reporter) -> Task:
    """Read the data of a recipe and build its model.

    Args:
        recipe: names the task.
        world: where this process stands.
        checkpoint: gives the vocabulary; its weights are loaded later.
        reporter: hears what is skipped.

    Raises:
        ConfigError: the recipe names no data, or does not fit it.
    """
    check_named(recipe)
    task: Task = TASKS[recipe.task](recipe, world, checkpoint, reporter)
    return task
