"""Which folder a run goes to, whether it may, and what is there already."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tcl.distributed.launch import launched
from tcl.errors import UsageError
from tcl.files.atomic import try_writing, write_whole
from tcl.files.locks import BEGUN_FILE, hold_run, is_unused

if TYPE_CHECKING:
    from tcl.config.recipe import Recipe

CONFIG_FILE = "config.yaml"


def claim_run(run: Path | None, name: str, resume: bool, held: ExitStack | None) -> tuple[Path, Path | None]:
    """The run folder, and the newest checkpoint in it; before anything that takes time.

    Args:
        run: as given.
        name: of the recipe or the task.
        resume: continue what is there.
        held: holds the folder until it is closed; None writes nothing.

    Raises:
        UsageError: it is in the way, cannot be written, or another process trains there.
    """
    folder = choose_run(run, name, resume)
    check_writable(folder)
    checkpoint = check_existing(folder, resume)
    if held:
        # When torchrun starts the run again, it looks for this folder.
        held.enter_context(hold_run(folder, tidy=not launched()))
        checkpoint = check_existing(folder, resume)  # whoever held it until now may have written one
    return folder, checkpoint


def choose_run(run: Path | None, name: str, resume: bool) -> Path:
    """The run folder: the one given; to resume, the last that was started; else a new one named after the recipe."""
    if run:
        return run
    latest, begun = Path("runs/latest"), list(Path("runs").glob(f"*/{BEGUN_FILE}"))
    started = [*(path for path in begun if not path.parent.is_symlink()), *latest.glob(CONFIG_FILE)]
    if resume and started:
        return Path("runs") / max(started, key=lambda path: path.stat().st_mtime_ns).parent.resolve().name
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
    if run.is_file():
        raise UsageError(f"{run} is a file", hint="choose another --out")
    try:
        try_writing(run)
    except OSError as error:
        raise UsageError(f"{run}: cannot be written: {error.strerror}", hint="choose another --out") from error


def check_existing(run: Path, resume: bool) -> Path | None:
    """The newest checkpoint of a folder that may be there already; None when it has none yet.

    Raises:
        UsageError: the folder is in the way.
    """
    if not run.exists() or is_unused(run):
        return None
    is_run = (run / CONFIG_FILE).is_file()
    if resume and not is_run:
        raise UsageError(f"{run} holds no run to resume (no config.yaml)", hint="choose another --out")
    saved = sorted((run / "checkpoints").glob("step-*"))
    if not resume and (saved or not is_run):  # a run that failed before it saved anything is in nobody's way
        raise UsageError(f"{run} exists", hint="continue it with --resume, or choose another --out")
    return saved[-1] if saved else None


def recipe_of_run(run: Path) -> Path | None:
    """The recipe that a run was started with, however early it was stopped."""
    paths = (run / name for name in (BEGUN_FILE, CONFIG_FILE))
    return next((path for path in paths if path.is_file()), None)


def vocabulary_of_run(of_run: Path | None) -> list[str]:
    """The vocabulary of a run that goes on, as a setting: the run keeps it, whether or not it is named again."""
    if of_run is None:
        return []
    from tcl.config.recipe import load_recipe

    return [f"model.tokenizer={json.dumps(load_recipe(of_run).model.tokenizer, ensure_ascii=False)}"]


def record(recipe: Recipe, run: Path) -> None:
    """Write down what a run is to train, before its data are read: until `config.yaml` is there, that may take long."""
    write_whole(run / BEGUN_FILE, recipe.to_yaml())
