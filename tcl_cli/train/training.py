"""What the commands that train have in common: agreeing on a plan, saying what it will take, doing it.

Part of the plan is what `--batch-size auto` means: the batch that suits memory, data and device.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import typer

from tcl.errors import TclError, UsageError
from tcl_cli._console import counted, out
from tcl_cli.train.run_reporter import ConsoleReporter

if TYPE_CHECKING:
    from tcl.config.recipe import Recipe
    from tcl.distributed.world import World
    from tcl.models.tcl import TCL
    from tcl.training.footprint import Footprint
    from tcl.training.trainer import Training

    Choice = tuple[Path, Path | None, Recipe]
    """Run folder, checkpoint to continue from, resolved recipe."""
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
    from tcl.tasks.build import build_training
    from tcl.training.footprint import largest_batch

    training = build_training(_with_batch_size(recipe, 4), world)
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


INTERRUPTED = 130
CLASSES_SHOWN = 12
ROWS = {"vqa": "questions", "entailment": "statements", "nlvr2": "statements"}  # what a task learns from, if not pairs


class RunPlan(NamedTuple):
    """What all processes of a command do: a `Choice`, and whether it is done already."""

    run: Path
    checkpoint: Path | None
    recipe: Recipe
    finished: bool


@contextmanager
def agree(device: str, plan: Callable[[], Choice]) -> Iterator[tuple[World, RunPlan]]:
    """Join the run, and let the first process choose, so that all agree, and only it says what is wrong.

    A process that is alone chooses first: what is wrong, or a folder that is taken, is said before torch is loaded.
    """
    from tcl.distributed.launch import launched

    early = None if launched() else _settle(plan)

    from tcl.distributed.world import join

    with join(device) as world:
        yield world, early or _decide(world, plan)


def _settle(plan: Callable[[], Choice]) -> RunPlan:
    """What the first process chooses, and says at once."""
    from tcl.training.preflight import is_finished

    run, checkpoint, recipe = plan()
    finished = checkpoint is not None and is_finished(run, checkpoint, recipe)
    if finished:
        out.message(f"{run} is finished, there is nothing left to do. Its model: {run / 'model'}")
    return RunPlan(run, checkpoint, recipe, finished)


def _decide(world: World, plan: Callable[[], Choice]) -> RunPlan:
    made, failure = None, None
    if world.is_main:
        try:
            made = _settle(plan)
        except TclError as error:
            failure = error
    made, code = world.from_main((made, failure.exit_code if failure else 0))
    if failure:
        raise failure
    if made is None:
        raise typer.Exit(code)
    return cast(RunPlan, made)


def train(
    plan: RunPlan,
    world: World,
    *,
    again: str,
    resume: bool,
    dry_run: bool,
    auto: bool,
    check: Callable[[TCL], None] = lambda model: None,
) -> bool:
    """Build the training, say what it will do, and do it; True when its model is there.

    Args:
        plan: where, from which checkpoint, by which recipe; without `dry_run` this process holds the folder.
        world: where this process stands.
        again: the command that continues the run.
        resume: this command was to continue a run, or to start it.
        dry_run: write nothing.
        auto: choose the batch size.
        check: looks at the model before anything is written.
    """
    from tcl.tasks.build import build_training
    from tcl.training.loop import fit
    from tcl.training.runlog import point_latest_at

    run, checkpoint, recipe, finished = plan
    if finished:
        return not dry_run
    with ConsoleReporter(quiet=not world.is_main) as reporter:
        if world.size > 1 and world.is_main and not dry_run:  # a restart, however early, finds its own run again
            point_latest_at(run)
        if auto:
            recipe = choose_batch_size(recipe, checkpoint, world, reporter)
        training = build_training(recipe, world, checkpoint, reporter)
        check(training.model)
        footprint = reporter.measure(training)
        if world.is_main:
            out.message(f"Run        {run}")
            describe(training, footprint)
            if resume or checkpoint:
                continues = f"Continuing {run} at step {training.step}."
                out.message(continues if checkpoint else f"Nothing to resume in {run}: starting.")
        if dry_run:
            reporter.note("Dry run: nothing was written.")
            return False
        result = fit(training, run, held=True)
    if result.finished:
        reporter.note(f"Finished: {run / 'model'}")
        return True
    by_scheduler = result.signal == signal.SIGTERM
    reason = "Told to end by SIGTERM" if by_scheduler else "Stopped"
    reporter.note(f"{reason} at step {result.step} of {training.total_steps}; everything is saved in {run}.")
    if world.is_main:
        out.hint(again)
    raise typer.Exit(0 if by_scheduler else INTERRUPTED)


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """A recipe and settings, in any order.

    Raises:
        UsageError: two recipes.
    """
    recipes = [argument for argument in arguments if "=" not in argument or os.path.isfile(argument)]
    if len(recipes) > 1:
        raise UsageError(f"more than one recipe: {', '.join(recipes)}", hint="a setting is written section.key=value")
    return (recipes[0] if recipes else None), [argument for argument in arguments if argument not in recipes]


def settings_of(options: Mapping[str, object], batch_size: str | None) -> list[str]:
    """Options as the settings they stand for; those that were not given are left out."""
    given = {key: json.dumps(value, ensure_ascii=False) for key, value in options.items() if value not in (None, [])}
    if batch_size not in (None, AUTO):
        given["data.batch_size"] = str(batch_size)
    return [f"{key}={value}" for key, value in given.items()]


def check_task(recipe: Recipe, tasks: Sequence[str], name: str) -> None:
    """Refuse a recipe of another task than the command's.

    Raises:
        UsageError: with the command that takes it.
    """
    if recipe.task in tasks:
        return
    pretraining = recipe.task in ("pretrain", "text_assignment")
    command = f"tcl pretrain {name}" if pretraining else f"tcl finetune {recipe.task} {name}"
    raise UsageError(
        f"{name} is a recipe of the task {recipe.task}, not of {tasks[0]}",
        hint=f"{command}, or change it with task={tasks[0]}",
    )


def describe(training: Training, footprint: Footprint) -> None:
    """What is about to happen: the model, the data, the memory and the time it will take."""
    recipe, loader, world = training.recipe, training.loader, training.world
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in training.model.parameters()]
    total, trained = sum(number for number, _ in parameters), sum(number for number, grad in parameters if grad)
    rows = ROWS.get(recipe.task, "pairs")
    if loader.batch_size < recipe.data.batch_size:
        out.warning(
            f"{training.task.rows} {rows} are fewer than batch_size {recipe.data.batch_size} asks for: "
            f"each forward pass sees {loader.batch_size}"
        )
    some = "" if trained == total else f" ({trained / 1e6:.1f} M trained)"
    where = f"{world.size} processes on {training.device.type}" if world.size > 1 else f"on {training.device}"
    height, width = training.model.config.image_shape
    size = str(width) if height == width else f"{height} x {width}"
    out.message(f"Model      {total / 1e6:.1f} M parameters{some}, {size} px, {training.precision}, {where}")
    steps, samples = loader.steps_per_epoch, loader.samples_per_step
    out.message(f"Data       {training.task.rows} {rows}, {steps} steps of {samples} per epoch")
    if classes := training.task.classes:
        shown = [f"{label} {count}" for label, count in list(classes.items())[:CLASSES_SHOWN]]
        more = f", and {len(classes) - len(shown)} more" if len(classes) > len(shown) else ""
        out.message(f"Classes    {len(classes)}: {', '.join(shown)}{more}")
    for line in footprint.describe(loader.batch_size, steps * samples, world.size, rows):
        out.message(line)
    out.message(f"Training   {counted(training.total_steps, 'steps')} ({_epochs(training.total_steps / steps)})")


def _epochs(number: float) -> str:
    """Three digits, and never an exponent."""
    if number < 0.001:
        return "under 0.001 epochs"
    text = f"{number:.3g}" if number < 100 else f"{number:.0f}"
    return f"{text} epoch{'' if text == '1' else 's'}"
