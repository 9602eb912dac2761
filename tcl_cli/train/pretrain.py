"""`tcl pretrain`: train a model on image-text pairs."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tcl.errors import UsageError
from tcl_cli._console import out
from tcl_cli._options import (
    INPUT_PANEL,
    MODEL_PANEL,
    App,
    DeviceOption,
    DryRunOption,
    ImagesOption,
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

EPILOG = """\
[bold]Examples[/]

  tcl pretrain
  tcl pretrain --data pairs.csv --val held_out.csv --images photos/
  tcl pretrain tcl-4m --data pairs.jsonl data.batch_size=128
  tcl pretrain --data pairs.csv --out runs/mine --resume
  tcl pretrain --data 'shards/*.tar' --data clean.jsonl@2 --init TCL_4M.pth
  torchrun --nproc-per-node 8 --max-restarts 3 -m tcl_cli pretrain tcl-4m --data 'shards/*.tar'

The first is the demo: built-in scenes, a few minutes on two cores. The fourth starts a run, or continues it.
"""

TASKS = ("pretrain", "text_assignment")
"""Tasks that learn from pairs alone, before any labels."""


app = App()


@app.command(epilog=EPILOG)
def pretrain(
    arguments: Annotated[
        list[str] | None,
        argument(
            metavar="RECIPE|KEY=VALUE",
            autocompletion=complete_recipe_or_setting,
            help="A recipe file or the name of a shipped one (`tcl recipes ls`), and settings that replace its own. "
            "Default: `demo`, or `small` when there is --data.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        option(
            help="Training pairs: ALBEF JSON, JSONL, CSV, TSV, Parquet, tar shards, an image folder with .txt "
            "sidecars, or scenes: (built in); paths, globs or URLs, @NUMBER behind one weighs it. "
            "Repeat it for several.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    images: ImagesOption = None,
    val: Annotated[
        list[str] | None,
        option(help="Validation pairs, in the same formats.", panel=INPUT_PANEL),
    ] = None,
    run: RunOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    init: Annotated[
        str | None,
        option(
            help="Start from these weights: a run, a model folder, a published TCL or ALBEF .pth, a hub id, or a BERT.",
            panel=MODEL_PANEL,
        ),
    ] = None,
    batch_size: TrainingBatchOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Pre-train a model on image-text pairs; without arguments, the demo."""
    overrides = settings_of(
        {"data.train": data, "data.images": images, "data.val": val, "model.init": init}, batch_size
    )
    recipe_name, given = split_arguments(arguments or [])
    default = "small" if data else "demo"

    from tcl.config.recipe import load_recipe
    from tcl.distributed.launch import restarted

    with ExitStack() as held:

        def plan() -> tuple[Path, Path | None, Recipe]:
            continues = resume or restarted()
            folder, checkpoint = claim_run(run, recipe_name or default, continues, None if dry_run else held)
            of_run = recipe_of_run(folder) if continues else None
            if resume and not (
                restarted() or recipe_name or data or of_run
            ):  # never the demo instead of something else
                raise UsageError(
                    f"{folder} holds no run to resume, and nothing says what to train",
                    hint=f"tcl pretrain RECIPE --data PAIRS --resume --out {folder}, or `demo` as RECIPE",
                )
            recipe = load_recipe(recipe_name or of_run or default, vocabulary_of_run(of_run) + overrides + given)
            check_task(recipe, TASKS, recipe_name or str(folder))
            if not (dry_run or of_run):
                record(recipe, folder)
            return folder, checkpoint, recipe

        with agree(device, plan) as (world, made):
            again, auto = f"tcl pretrain --resume --out {made.run}", batch_size == AUTO
            finish = train(made, world, again=again, resume=resume, dry_run=dry_run, auto=auto)
            if finish and world.is_main:
                hint_at_use(made.run, made.recipe, is_demo=recipe_name in (None, "demo") and is_built_in(made.recipe))


def is_built_in(recipe: Recipe) -> bool:
    """Is the model trained on the built-in scenes alone?"""
    return all(source.startswith("scenes:") for source in recipe.data.train)


def hint_at_use(run: Path, recipe: Recipe, is_demo: bool) -> None:
    """What the new model is good for."""
    if is_demo:
        write_demo_images()
    places = ("images/" if is_demo else None, recipe.data.images, *recipe.data.val, *recipe.data.train, "images/")
    there = next((place for place in places if place and Path(place).exists()), "FOLDER")
    out.hint(f"tcl embed {shlex.quote(there)} --out vecs.npy --model {run}")
    out.hint(f"tcl export --model {run}")


def write_demo_images() -> None:
    """Leave something to embed: the demo's scenes are never files."""
    folder = Path("images")
    if folder.exists():
        return
    from tcl_cli.scenes import write_scenes

    count = write_scenes("scenes:val:256", folder)
    out.message(f"Wrote {count} held-out scenes with captions to {folder}/, to try the model on.")
