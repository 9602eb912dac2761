"""From the task that a recipe names to the object that is trained."""

from __future__ import annotations

import importlib
from pathlib import Path

from tcl.config.recipe import Recipe, TaskName
from tcl.distributed.world import World
from tcl.training.preflight import check_named
from tcl.training.reporter import Reporter
from tcl.training.task import Task

TASKS: dict[TaskName, tuple[str, str]] = {
    "pretrain": ("tcl.tasks.pretraining", "Pretraining"),
    "text_assignment": ("tcl.tasks.text_assignment", "TextAssignmentTraining"),
    "retrieval": ("tcl.tasks.retrieval", "RetrievalTraining"),
    "grounding": ("tcl.tasks.retrieval", "GroundingTraining"),
    "entailment": ("tcl.tasks.statements", "StatementTraining"),
    "nlvr2": ("tcl.tasks.statements", "StatementTraining"),
    "vqa": ("tcl.tasks.vqa", "VqaTraining"),
}
"""Module and class of each task; imported when it is built."""


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
    module, name = TASKS[recipe.task]
    build: type[Task] = getattr(importlib.import_module(module), name)
    check_named(recipe)
    return build(recipe, world, checkpoint, reporter)  # type: ignore[call-arg]
