"""What is settled before a run starts or goes on: its data, its images, its checkpoint, and whether it is finished.

Of a run that goes on this includes its best validation so far, as `best.json` has it, and how many came after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl.config.recipe import Recipe
from tcl.data.images.decode import IMAGES_HINT, ImageError, decode, why_missing
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.data.scenes import scenes
from tcl.data.sources.columns import Columns
from tcl.data.sources.find import SourceRows
from tcl.data.storage.open import shard_of
from tcl.data.storage.parquet_cells import container_of, open_image
from tcl.errors import CheckpointError, ConfigError, DataError
from tcl.files.remote import is_url
from tcl.report.records import read_records
from tcl.training.reporter import Reporter
from tcl.weights.find import CONFIG_FILE, read_json

if TYPE_CHECKING:
    from tcl.data.loader import Samples

BEST_FILE = "best.json"
BEST_FOLDER = "best"
METRICS_FILE = "metrics.jsonl"

LOOKED_AT = 64  # training rows whose images are opened before a run
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


def read_best(run: Path, step: int) -> dict[str, Any] | None:
    """The best validation of a run that goes on from `step`: its step, the metric and its value.

    One past that step does not count. The run computes that step again, and everything before it was less good.
    """
    for record in read_records(run / BEST_FILE, {"step": int, "metric": str, "value": float}):
        if record["step"] <= step:
            return record
    return None


def count_stale(run: Path, step: int) -> int:
    """Validations after the best one, up to `step`: so many in a row were no better."""
    best = read_best(run, step)
    if best is None:
        return 0
    metric = f"val_{best['metric']}"
    return sum(
        metric in record and best["step"] < record["step"] <= step for record in read_records(run / METRICS_FILE)
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
    index = read_pairs(sources, recipe.data.images, Columns.of(recipe.data), progress=reporter.reading)
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
            hint=IMAGES_HINT,
        )


def check_present(samples: Samples, reporter: Reporter) -> None:
    """A wrong folder of training images should show now, not with the first batch: a few rows are looked at.

    They are spread over each source. Their files are opened but not decoded, so some more may be unreadable.

    Raises:
        DataError: none of the rows has its images.
        UsageError: no package for their URLs is installed.
    """
    rows = list(_spread(samples.parts))
    with ThreadPoolExecutor(LOOKED_AT) as pool:  # a remote that does not answer is waited for once
        found = list(pool.map(_absence, map(samples.name, rows)))
    missing = [absence for absence in found if absence]
    if len(missing) == len(rows):
        raise DataError(
            f"training: none of the {len(rows)} images looked at is there; the first is {missing[0]}", IMAGES_HINT
        )
    if missing:
        reporter.message(
            f"training: of {len(rows)} images looked at, at least {len(missing)} ({len(missing) / len(rows):.0%}) are "
            f"missing and will be replaced by others; the first is {missing[0]}. `tcl data check` finds all"
        )


def _spread(parts: Sequence[SourceRows]) -> Iterator[int]:
    """Rows from all over each part, `LOOKED_AT` together or a bit less; one of each at least."""
    for part in parts:
        size = part.stop - part.start
        count = min(max(LOOKED_AT // len(parts), 1), size)
        yield from (part.start + place * size // count for place in range(count))


def _absence(name: str) -> str | None:
    """Which image of a row cannot be opened, and why; None where all can."""
    absence = _why_not(name)
    # A row of two images is named by both. References are absolute, so a comma within one is not taken for the gap.
    parts = re.split(r", (?=/|[A-Za-z][A-Za-z0-9+.-]*:)", name)
    if absence and len(parts) > 1:
        return next(filter(None, map(_why_not, parts)), None)
    return absence


def _why_not(image: str) -> str | None:
    # A member of a remote shard was there when the shard was indexed, and opening it would download all of the shard;
    # so was the cell of a table, before which half of the table may have to be read.
    container = container_of(image)
    if image.startswith(scenes.PREFIX) or (container and (is_url(image) or not shard_of(image))):
        return None
    try:
        with open_image(image) as file:
            return None if file.read(1) else f"{image}: the file is empty"
    except FileNotFoundError:
        return f"{image}: {why_missing(image)}"
    except (OSError, ValueError) as error:  # ValueError: no name that a file could have
        return f"{image}: {getattr(error, 'strerror', None) or str(error).removeprefix(f'{image}: ')}"


def is_finished(run: Path, checkpoint: Path, recipe: Recipe) -> bool:
    """Has the run done all that its recipe asks for, its final model included? Reads no data and builds no model.

    Args:
        run: its folder.
        checkpoint: its newest one.
        recipe: as it would be continued.

    Raises:
        ConfigError: the recipe is of another model.
        CheckpointError: the checkpoint is damaged.
    """
    meta: Any = read_json(checkpoint / "meta.json")
    check_same_model(recipe, meta["recipe"], checkpoint)
    step, train = meta["step"], recipe.train
    if train.steps is None and meta["recipe"]["data"]["train"] != recipe.data.train:
        return False  # an epoch is another number of steps
    reached = step >= train.steps if train.steps else meta["epoch"] >= train.epochs
    gave_up = train.patience is not None and count_stale(run, step) >= train.patience
    best = train.select == "best" and read_best(run, step) is not None
    final = _model_hash(run / BEST_FOLDER if best else checkpoint)
    return (reached or gave_up) and final is not None and final == _model_hash(run / "model")


def _model_hash(folder: Path) -> object:
    """The hash that a model folder has written down; None where there is no such folder."""
    try:
        return read_json(folder / CONFIG_FILE).get("model_hash")
    except CheckpointError:
        return None


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
                f"{section}.{key} is {_as_written(after)} now, but {_as_written(before)} in {checkpoint}: "
                "a resumed run keeps its model",
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
            now_is, was = _as_written(after), _as_written(before)
            yield f"{name} is {now_is} now, but was {was}: an uninterrupted run would go on differently"


def _as_written(value: object) -> object:
    """A setting as a recipe has it."""
    return "null" if value is None else value
