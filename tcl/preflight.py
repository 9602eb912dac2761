"""What is settled before a run: its data, its validation images, and whether a checkpoint fits its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tcl.config import Recipe
from tcl.data.images import ImageError, decode
from tcl.data.index import PairIndex, read_pairs
from tcl.errors import ConfigError, DataError
from tcl.runlog import Reporter

STARTING = ("init", "pretrained")  # how a model started does not matter to a run that goes on
CHANGING = (
    *(("data", name) for name in ("augment", "min_scale", "batch_size")),
    *(("train", name) for name in ("seed", "epochs", "steps")),
    *(
        ("optim", name)
        for name in ("lr", "warmup_lr", "min_lr", "warmup_steps", "schedule", "weight_decay", "clip_norm")
    ),
    *(("loss", name) for name in ("momentum", "alpha", "mlm_probability")),
)


def check_named(recipe: Recipe) -> None:
    """Refuse a recipe without training data.

    Raises:
        ConfigError: there is none.
    """
    if not recipe.data.train:
        rows = "pairs" if recipe.task == "pretrain" else f"rows of {recipe.task}"
        raise ConfigError(f"data.train names no {rows}", hint="give --data SOURCE, for example --data pairs.csv")


def read_index(sources: Sequence[str], recipe: Recipe, reporter: Reporter) -> PairIndex:
    """The pairs of a recipe's sources; what had to be skipped is reported."""
    index = read_pairs(sources, recipe.data.images, progress=reporter.reading)
    if index.skipped:
        reason = index.skipped_reasons[0] if index.skipped_reasons else ""
        reporter.message(f"{index.skipped} rows skipped of {', '.join(sources)}; the first: {reason}")
    return index


def check_readable(images: Iterable[str]) -> None:
    """A wrong folder of validation images should show now, not when the first validation is due.

    Raises:
        DataError: none of the first images can be read.
    """
    first = list(islice(images, 8))
    readable = 0
    for image in first:
        try:
            decode(image)
            readable += 1
        except ImageError as error:
            reason = error.reason
    if not readable:
        raise DataError(
            f"validation: none of the first {len(first)} images can be read; the last is {first[-1]}: {reason}",
            hint="relative paths start from --images, else from the folder of the data file",
        )


def check_same_model(recipe: Recipe, saved: Mapping[str, Any], checkpoint: Path) -> None:
    """A run may be resumed with another learning rate, but not with another model.

    Raises:
        ConfigError: naming what differs.
    """
    task = saved.get("task", "pretrain")
    if recipe.task != task:
        raise ConfigError(
            f"the task is {recipe.task} now, but {task} in {checkpoint}: a resumed run keeps its task",
            hint="start a new run with another --out",
        )
    now, defaults = recipe.model_dump(), Recipe().model_dump()
    fixed = [("model", key) for key in now["model"] if key not in STARTING]
    fixed.append(("loss", "queue_size"))
    for section, key in fixed:
        # A setting that an older version did not have counts as the default that it is now.
        before, after = saved.get(section, {}).get(key, defaults[section][key]), now[section][key]
        if before != after:
            raise ConfigError(
                f"{section}.{key} is {after} now, but {before} in {checkpoint}: a resumed run keeps its model",
                hint="drop the change, or start a new run with another --out",
            )


def changed_batches(recipe: Recipe, meta: Mapping[str, Any], samples_per_step: int) -> Iterator[str]:
    """What may change on resume, but makes batches or learning rates others than those of an uninterrupted run."""
    now, defaults = recipe.model_dump(), Recipe().model_dump()
    changes = [("samples per step", meta["samples_per_step"], samples_per_step)]
    for section, key in CHANGING:
        before = meta["recipe"].get(section, {}).get(key, defaults[section][key])
        changes.append((f"{section}.{key}", before, now[section][key]))
    for name, before, after in changes:
        if before != after:
            yield f"{name} is {after} now, but was {before}: an uninterrupted run would go on differently"
