"""What is settled before a run: its vocabulary, its validation images, and whether a checkpoint fits its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tcl.config import Recipe
from tcl.data.captions import CaptionTokenizer
from tcl.data.images import ImageError, decode
from tcl.data.index import PairIndex
from tcl.errors import ConfigError, DataError

CHANGING = (("data", "batch_size"), ("data", "augment"), ("train", "seed"), ("train", "epochs"), ("train", "steps"))


def build_tokenizer(recipe: Recipe, index: PairIndex) -> CaptionTokenizer:
    """The vocabulary that the recipe names, or one trained on the captions."""
    if recipe.model.tokenizer == "train":
        return CaptionTokenizer.train((text for pair in index for text in pair.captions), recipe.model.vocab_size)
    return CaptionTokenizer.load(recipe.model.tokenizer)


def check_readable(index: PairIndex) -> None:
    """A wrong folder of validation images should show now, not when the first validation is due.

    Raises:
        DataError: none of the first images can be read.
    """
    first = [index[row].image for row in range(min(len(index), 8))]
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
    now = recipe.model_dump()
    fixed = [("model", key) for key in now["model"]] + [("loss", "queue_size")]
    for section, key in fixed:
        before, after = saved.get(section, {}).get(key), now[section][key]
        if before != after:
            raise ConfigError(
                f"{section}.{key} is {after} now, but {before} in {checkpoint}: a resumed run keeps its model",
                hint="drop the change, or start a new run with another --out",
            )


def changed_batches(recipe: Recipe, saved: Mapping[str, Any]) -> Iterator[str]:
    """What may change on resume, but makes batches or learning rates others than those of an uninterrupted run."""
    now = recipe.model_dump()
    for section, key in CHANGING:
        before, after = saved[section][key], now[section][key]
        if before != after:
            yield f"{section}.{key} is {after} now, but was {before}: an uninterrupted run would go on differently"
