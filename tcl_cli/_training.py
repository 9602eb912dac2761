"""What the commands that train have in common: choosing the run folder, agreeing on a plan, doing it."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tcl.errors import TclError, UsageError
from tcl_cli._console import out
from tcl_cli._options import INPUT_PANEL, OUTPUT_PANEL, SPEED_PANEL
from tcl_cli._run_reporter import ConsoleReporter

if TYPE_CHECKING:
    from tcl.config import Recipe
    from tcl.distributed import World
    from tcl.footprint import Footprint
    from tcl.models.tcl import TCL
    from tcl.train import Training

    Plan = tuple[Path, Path | None, Recipe]

AUTO = "auto"
INTERRUPTED = 130
ROWS = {"vqa": "questions", "entailment": "statements", "nlvr2": "statements"}  # what a task learns from, if not pairs

ImagesOption = Annotated[
    str | None,
    typer.Option(
        help="Folder that relative image paths start from; default: the folder of the data file.",
        show_default=False,
        rich_help_panel=INPUT_PANEL,
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Run folder; must be new, except with --resume. Default: runs/<recipe or task>.",
        show_default=False,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --out (or runs/latest), or start it when there is none.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Read the recipe and the data, build the model, say what would happen, and write nothing.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
BatchSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Samples per device and forward pass; auto: as many as fit into memory. Default: the recipe's.",
        show_default=False,
        rich_help_panel=SPEED_PANEL,
    ),
]


def decide(world: World, plan: Callable[[], Plan]) -> Plan:
    """Let the first process choose, so that all agree, and only it says what is wrong."""
    made, failure = None, None
    if world.is_main:
        try:
            made = plan()
        except TclError as error:
            failure = error
    made, code = world.from_main((made, failure.exit_code if failure else 0))
    if failure:
        raise failure
    if made is None:
        raise typer.Exit(code)
    return cast("Plan", made)


def train(
    run: Path,
    checkpoint: Path | None,
    recipe: Recipe,
    world: World,
    *,
    again: str,
    resume: bool,
    dry_run: bool,
    auto: bool,
    check: Callable[[TCL], None] = lambda model: None,
) -> bool:
    """Build the training, say what it will do, and do it; True when it did all of it.

    Args:
        run: its folder.
        checkpoint: to continue from.
        recipe: resolved.
        world: where this process stands.
        again: the command that continues the run.
        resume: this command was to continue a run, or to start it.
        dry_run: write nothing.
        auto: choose the batch size.
        check: looks at the model before anything is written.
    """
    from tcl.fit import fit
    from tcl.runlog import point_latest_at
    from tcl.train import Training

    if world.size > 1 and world.is_main and not dry_run:  # a restart, however early, finds its own run again
        run.mkdir(parents=True, exist_ok=True)
        point_latest_at(run)
    with ConsoleReporter(quiet=not world.is_main) as reporter:
        if auto:
            known = batch_size_of(checkpoint) if checkpoint else what_fits(recipe, world)
            recipe = with_batch_size(recipe, known)
        training = Training(recipe, world, checkpoint, reporter)
        check(training.model)
        footprint = reporter.measure(training)
        if world.is_main:
            describe(training, footprint)
            if resume or checkpoint:
                continues = f"Continuing {run} at step {training.step}."
                out.message(continues if checkpoint else f"Nothing to resume in {run}: starting.")
        if dry_run:
            reporter.note("Dry run: nothing was written.")
            return False
        if training.step >= training.total_steps and (run / "model").is_dir():
            reporter.note(f"{run} is finished: {training.step} steps, and its model is there.")
            return False
        result = fit(training, run)
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


def choose_run(run: Path | None, name: str, resume: bool) -> Path:
    """The run folder: the one given; to resume, the latest; else a new one named after the recipe."""
    if run:
        return run
    latest = Path("runs/latest")
    if resume and latest.is_dir():
        return Path("runs") / latest.resolve().name
    first = Path("runs") / Path(name).stem
    if resume:
        return first
    candidates = (first.with_name(f"{first.name}-{number}") for number in range(2, 10**6))
    return first if not first.exists() else next(path for path in candidates if not path.exists())


def check_writable(run: Path) -> None:
    """Could the run folder be created? Nothing is left behind by asking.

    Raises:
        UsageError: no, and why.
    """
    place = run.absolute()
    if place.is_file():
        raise UsageError(f"{run} is a file", hint="choose another --out")
    parent = next(path for path in (place, *place.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise UsageError(f"{run}: cannot be written: {error.strerror}", hint="choose another --out") from error


def check_existing(run: Path, resume: bool) -> Path | None:
    """The newest checkpoint of a folder that is there already; None when it has none yet.

    Raises:
        UsageError: the folder is in the way.
    """
    if not any(run.iterdir()):
        return None
    is_run = (run / "config.yaml").is_file()
    if resume and not is_run:
        raise UsageError(f"{run} holds no run to resume (no config.yaml)", hint="choose another --out")
    saved = sorted((run / "checkpoints").glob("step-*"))
    if not resume and (saved or not is_run):  # a run that failed before it saved anything is in nobody's way
        raise UsageError(f"{run} exists", hint="continue it with --resume, or choose another --out")
    return saved[-1] if saved else None


def recipe_of_run(run: Path) -> Path | None:
    """The recipe that a run was started with."""
    path = run / "config.yaml"
    return path if path.is_file() else None


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


def what_fits(recipe: Recipe, world: World) -> int:
    """The largest batch that memory allows, the same for all processes."""
    from tcl.footprint import largest_batch
    from tcl.memory import memory_budget
    from tcl.train import Training

    training = Training(with_batch_size(recipe, 4), world)
    footprint = training.footprint()
    return int(
        min(
            world.collect(
                largest_batch(footprint, memory_budget(training.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
            )
        )
    )


def batch_size_of(checkpoint: Path) -> int:
    """What the run was started with: another batch size would give it other steps."""
    from tcl.resolve import read_json

    meta: Any = read_json(checkpoint / "meta.json")
    return int(meta["recipe"]["data"]["batch_size"])


def with_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe with as many pairs per forward pass."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": batch_size})})


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
    epochs = training.total_steps / steps
    for line in footprint.describe(loader.batch_size, steps * samples, world.size):
        out.message(line)
    out.message(f"Training   {training.total_steps} steps ({epochs:.3g} epochs)")
