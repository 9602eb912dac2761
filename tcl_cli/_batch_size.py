"""`--batch-size auto`: the batch that suits memory, data and device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcl.config.recipe import Recipe
    from tcl.distributed.world import World
    from tcl.training.reporter import Reporter

AUTO = "auto"
STEPS_PER_EPOCH = 8  # at least


def choose_batch_size(recipe: Recipe, checkpoint: Path | None, world: World, reporter: Reporter) -> Recipe:
    """The recipe with a batch that fits, or with that of the run that is continued: another gave it other steps."""
    if checkpoint:
        from tcl.weights.find import read_json

        meta: Any = read_json(checkpoint / "meta.json")
        return _with_batch_size(recipe, int(meta["recipe"]["data"]["batch_size"]))
    fits, samples, device = what_fits(recipe, world)
    chosen, reason = bounded(fits, samples, recipe, world.size, on_cpu=device == "cpu")
    reporter.note(f"Batch      {chosen} per device and forward pass: {reason}")
    return _with_batch_size(recipe, chosen)


def what_fits(recipe: Recipe, world: World) -> tuple[int, int, str]:
    """The largest batch that memory allows, the same for all processes; the samples of an epoch; the kind of device."""
    from tcl.machine.memory import memory_budget
    from tcl.training.footprint import largest_batch
    from tcl.training.trainer import Training

    training = Training(_with_batch_size(recipe, 4), world)
    budget = memory_budget(training.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fits = min(world.collect(largest_batch(training.footprint(), budget)))
    return fits, training.loader.steps_per_epoch * training.loader.samples_per_step, training.device.type


def bounded(fits: int, samples: int, recipe: Recipe, processes: int, *, on_cpu: bool) -> tuple[int, str]:
    """The batch size, and what decided it.

    Args:
        fits: the largest that memory allows.
        samples: of an epoch.
        recipe: its own batch size is enough for a CPU.
        processes: that share a step.
        on_cpu: memory is not what limits there.
    """
    share = max(samples // (STEPS_PER_EPOCH * processes * recipe.train.accumulate), 1)
    bounds = [
        (fits, "as many as fit into memory"),
        (share // 8 * 8 or share, f"so that an epoch has {STEPS_PER_EPOCH} steps or more"),
    ]
    if on_cpu:
        bounds.append((recipe.data.batch_size, "that of the recipe, as a CPU gains nothing from more"))
    chosen, reason = min(bounds, key=lambda bound: bound[0])
    return chosen, reason if chosen == fits else f"{reason} (memory has room for {fits:,})"


def _with_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": batch_size})})
