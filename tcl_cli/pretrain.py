"""`tcl pretrain`: train a model on image-text pairs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tcl.errors import UsageError
from tcl.runlog import Reporter
from tcl_cli._console import Advance, out
from tcl_cli._options import INPUT_PANEL, OUTPUT_PANEL, Device, DeviceOption

if TYPE_CHECKING:
    from tcl.config import Recipe
    from tcl.train import Training

EPILOG = """\
[bold]Examples[/]

  tcl pretrain
  tcl pretrain --data pairs.csv --val held_out.csv --images photos/
  tcl pretrain tcl-4m --data pairs.jsonl data.batch_size=128
  tcl pretrain --data pairs.csv --out runs/mine --resume

The first is the demo: built-in scenes, a few minutes on two cores. The last one starts a run, or continues it.
"""

SHOWN = ("loss", "contrastive", "itm", "mlm")  # beside the progress bar; metrics.jsonl has every part


def pretrain(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|KEY=VALUE",
            help="A recipe file or the name of a shipped one (`tcl recipes ls`), and settings that replace its own. "
            "Default: `demo`, or `small` when there is --data.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Training pairs: ALBEF JSON, JSONL, CSV, TSV, an image folder with .txt sidecars, or scenes: "
            "(built in). Repeat it for several.",
            show_default=False,
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Folder that relative image paths start from; default: the folder of the data file.",
            show_default=False,
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    val: Annotated[
        list[str] | None,
        typer.Option(help="Validation pairs, in the same formats.", show_default=False, rich_help_panel=INPUT_PANEL),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Run folder; must be new, except with --resume. Default: runs/<recipe>.",
            show_default=False,
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out (or runs/latest), or start it when there is none.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read the recipe and the data, build the model, say what would happen, and write nothing.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    device: DeviceOption = Device.auto,
) -> None:
    """Pre-train a model on image-text pairs; without arguments, the demo."""
    changes = {"data.train": data, "data.images": images, "data.val": val}
    overrides = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in changes.items()
        if value is not None and value != []
    ]
    recipe_name, given = split_arguments(arguments or [])
    default = "small" if data else "demo"
    run = choose_run(run, recipe_name or default, resume)
    check_writable(run)
    checkpoint = check_existing(run, resume) if run.exists() else None
    recipe = resolve_recipe(run, recipe_name, overrides + given, default)

    out.message(f"Run        {run}")
    from tcl.devices import choose_device
    from tcl.train import Training

    with ConsoleReporter() as reporter:
        training = Training(recipe, choose_device(device.value), checkpoint, reporter)
        describe(training)
        if resume:
            start = (
                f"Continuing {run} at step {training.step}." if checkpoint else f"Nothing to resume in {run}: starting."
            )
            out.message(start)
        if dry_run:
            out.message("Dry run: nothing was written.")
            return
        if training.step >= training.total_steps and (run / "model").is_dir():
            out.message(f"{run} is finished: {training.step} steps, and its model is there.")
            return
        result = training.fit(run)
    if not result.finished:
        out.message(f"Stopped at step {result.step} of {training.total_steps}; everything is saved in {run}.")
        out.hint(f"tcl pretrain --resume --out {run}")
        raise typer.Exit(130)
    out.message(f"Finished: {run / 'model'}")
    if recipe_name is None and all(source.startswith("scenes:") for source in recipe.data.train):
        write_demo_images()
    out.hint(f"tcl embed {'images/' if Path('images').is_dir() else 'FOLDER'} --out vecs.npy --model {run}")
    out.hint(f"tcl export --model {run}")


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


def resolve_recipe(run: Path, recipe: str | None, overrides: list[str], default: str) -> Recipe:
    """The recipe that is named; else that of the run which is resumed; else the default. With settings replaced."""
    from tcl.config import load_recipe

    of_run = run / "config.yaml"
    return load_recipe(recipe or (of_run if of_run.is_file() else default), overrides)


def describe(training: Training) -> None:
    """What is about to happen, in three lines."""
    recipe, loader = training.recipe, training.loader
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    if len(training.index) < recipe.data.batch_size:
        out.warning(
            f"{len(training.index)} pairs are fewer than batch_size {recipe.data.batch_size}: each step sees all"
        )
    out.message(
        f"Model      {parameters / 1e6:.1f} M parameters, {training.model.config.image_size} px, on {training.device}"
    )
    out.message(
        f"Data       {len(training.index)} pairs, {loader.steps_per_epoch} steps of {loader.batch_size} per epoch"
    )
    epochs = training.total_steps / loader.steps_per_epoch
    out.message(f"Training   {training.total_steps} steps ({epochs:.3g} epochs)")


def write_demo_images() -> None:
    """Leave something to embed: the demo's scenes are never files."""
    folder = Path("images")
    if folder.exists():
        return
    from tcl_cli.scenes import write_scenes

    count = write_scenes("scenes:val:256", folder)
    out.message(f"Wrote {count} held-out scenes with captions to {folder}/, to try the model on.")


class ConsoleReporter(Reporter):
    """A run's progress on the terminal; its display ends with `with`."""

    def __init__(self) -> None:
        self._display = ExitStack()
        self._advance: Advance | None = None
        self._step = 0

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    def message(self, text: str) -> None:
        """Something worth a line."""
        out.warning(text)

    def started(self, first_step: int, total_steps: int) -> None:
        """Begin the progress display."""
        self._step = first_step
        self._advance = self._display.enter_context(out.progress("Training", total=total_steps, initial=first_step))

    def stepped(self, step: int) -> None:
        """Move it."""
        if self._advance:
            self._advance(step - self._step)
        self._step = step

    def logged(self, record: Mapping[str, Any]) -> None:
        """Show the losses; print validation results, which should stay in sight."""
        if self._advance and "loss" in record:
            speed = record.get("samples_per_second")
            self._advance(0, **{name: record[name] for name in SHOWN}, **({"samples/s": speed} if speed else {}))
        elif "val_r_mean" in record:
            recalls = {
                way: " / ".join(f"{record[f'val_{way}_r{k}']:.1f}" for k in (1, 5, 10)) for way in ("t2i", "i2t")
            }
            ways = f"text to image {recalls['t2i']}  image to text {recalls['i2t']}"
            out.message(f"step {record['step']:>6}  R@1/5/10 %  {ways}")
