"""`tcl finetune TASK`: train a model for a task, on published data or one's own."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tcl.distributed.share import Share
from tcl_cli._console import counted, out
from tcl_cli._options import (
    INPUT_PANEL,
    MODEL_PANEL,
    App,
    DeviceOption,
    DryRunOption,
    ImagesOption,
    ModelOption,
    ResumeOption,
    RunOption,
    TrainingBatchOption,
    argument,
    complete_recipe_or_setting,
    option,
)
from tcl_cli.train.run_folder import claim_run, recipe_of_run, record, vocabulary_of_run
from tcl_cli.train.training import AUTO, agree, check_task, settings_of, split_arguments, train

if TYPE_CHECKING:
    from tcl.config.recipe import Recipe
    from tcl.distributed.world import World
    from tcl.evaluation.held_out import HeldOut
    from tcl.evaluation.tasks import Result

EPILOG = """\
[bold]Examples[/]

  tcl finetune entailment --model runs/mine --data train.jsonl --val val.jsonl
  tcl finetune vqa --model TCL_4M.pth --data questions.jsonl --images photos/ --test held_out.jsonl
  tcl finetune retrieval --data pairs.csv train.epochs=3 optim.lr=1.0e-5
  tcl finetune retrieval retrieval-coco --model TCL_4M.pth --data coco_train.json --val coco_val.json --images coco/
  tcl finetune grounding --model TCL_4M.pth --data referred.jsonl --val boxes.jsonl --out runs/grounding --resume

Without a recipe: `small-<task>`, for hundreds to thousands of rows of your own (`tcl recipes show small-vqa`).
"""

PREDICTIONS_FILE = "predictions.jsonl"
FIGURES_FILE = "test.json"


FinetuneTask = Literal["retrieval", "vqa", "entailment", "nlvr2", "grounding"]


app = App()


@app.command(epilog=EPILOG)
def finetune(
    task: Annotated[FinetuneTask, typer.Argument(help="What to train for.", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        argument(
            metavar="RECIPE|KEY=VALUE",
            autocompletion=complete_recipe_or_setting,
            help="A recipe of the task, a file or the name of a shipped one (`tcl recipes ls`), and settings that "
            "replace its own. Default: `small-<task>`.",
        ),
    ] = None,
    model: ModelOption = None,
    scratch: Annotated[
        bool,
        option(
            "--scratch",
            help="Start from no model: from what the recipe's own `model` section says.",
            panel=MODEL_PANEL,
        ),
    ] = False,
    data: Annotated[
        list[str] | None,
        option(
            help="Training rows: JSON, JSONL, CSV, TSV or Parquet; pairs for retrieval and grounding. "
            "Repeat it for several.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    images: ImagesOption = None,
    val: Annotated[
        list[str] | None,
        option(
            help="Validation rows; of grounding with boxes. The best model by them becomes the model of the run.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        option(
            help="Rows to evaluate the finished model on, labels or not; predictions.jsonl goes into the run folder.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    run: RunOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    batch_size: TrainingBatchOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Fine-tune a model for a task."""
    overrides = settings_of({"data.train": data, "data.images": images, "data.val": val}, batch_size)
    name, given = split_arguments(arguments or [])

    from tcl.config.recipe import load_recipe
    from tcl.distributed.launch import restarted

    held_out: HeldOut | None = None
    with ExitStack() as held:

        def plan() -> tuple[Path, Path | None, Recipe]:
            nonlocal held_out
            continues = resume or restarted()
            folder, checkpoint = claim_run(run, name or task, continues, None if dry_run else held)
            if name:  # before a model is looked for
                named = load_recipe(name, [setting for setting in given if setting.startswith("task=")])
                check_task(named, (task,), name)
            of_run = recipe_of_run(folder) if continues else None
            recipe = resolve(of_run, task, name, model, scratch, vocabulary_of_run(of_run) + overrides + given)
            check_task(recipe, (task,), str(folder))
            held_out = read_held_out(recipe, test)
            if not (dry_run or of_run):
                record(recipe, folder)
            return folder, checkpoint, recipe

        with agree(device, plan) as (world, made):
            with Share.of(world).agree():  # the first process has read it already
                held_out = held_out or read_held_out(made.recipe, test)
            tests = "".join(f" --test {shlex.quote(source)}" for source in test or [])
            again, auto = f"tcl finetune {task} --resume --out {made.run}{tests}", batch_size == AUTO
            check = held_out.check if held_out else lambda model: None
            train(made, world, again=again, resume=resume, dry_run=dry_run, auto=auto, check=check)
            if dry_run:
                return
            if held_out:
                result = evaluate_run(held_out, made.run, world)
                if world.is_main:
                    report(made.run, result)
            if world.is_main:
                out.hint(f"tcl eval {task} --model {made.run} --data SOURCE")


def resolve(
    of_run: Path | None, task: str, name: str | None, model: str | None, scratch: bool, overrides: list[str]
) -> Recipe:
    """The recipe, whose `model` section is that of the model to start from, as far as it has none of its own.

    Args:
        of_run: the recipe of the run that is continued; it is its own model, unless another is named.
        task: chooses the default recipe.
        name: of the recipe.
        model: to start from.
        scratch: start from no model.
        overrides: they win.

    Raises:
        UsageError: there is no model, or two ways to start.
    """
    from tcl.config.recipe import load_recipe
    from tcl.errors import UsageError
    from tcl.training.start_model import config_of
    from tcl.weights.find import find_model

    if scratch and model:
        raise UsageError("--scratch starts from no model, and --model names one", hint="leave one of them out")
    if of_run and name is None and model is None:
        return load_recipe(of_run, overrides)
    place = name or f"small-{task}"
    if scratch:
        return load_recipe(place, overrides)
    section = load_recipe(of_run).model if of_run and model is None else config_of(find_model(model).location)
    return load_recipe(place, overrides, section)


def read_held_out(recipe: Recipe, sources: list[str] | None) -> HeldOut | None:
    """The rows of --test, before the training, so that a mistake in them shows then."""
    if not sources:
        return None
    from tcl.evaluation.held_out import HeldOut

    return HeldOut(recipe, sources)


def evaluate_run(held_out: HeldOut, run: Path, world: World) -> Result:
    """What the finished model of a run does on the test split; the processes share the rows."""
    from tcl.weights.load import load_model

    share = Share.of(world)
    with share.agree(), world.main_first():  # which has only just written it
        model = load_model(run).to(world.device)
        held_out.check(model)  # of a run that was finished before, nobody has
    return held_out.evaluate(model, share)


def report(run: Path, result: Result) -> None:
    """Write down what the model does on the test split, and print the figures."""
    from tcl.files.atomic import write_whole

    if result.bad:
        first = result.bad[0]
        out.warning(f"{counted(len(result.bad), 'images')} left out; the first: {first['image']}: {first['reason']}")
    if lines := [json.dumps(row, ensure_ascii=False) for row in result.predictions]:
        write_whole(run / PREDICTIONS_FILE, "\n".join(lines) + "\n")
        out.message(f"Wrote {len(lines)} predictions to {run / PREDICTIONS_FILE}")
    figures = result.figures()
    write_whole(run / FIGURES_FILE, json.dumps(figures, indent=2) + "\n")
    if figures:
        out.table(["on the test rows", "%"], [[name, round(value, 2)] for name, value in figures.items()])
