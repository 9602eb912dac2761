"""A test split of a task: read before the training, evaluated after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcl.config.recipe import Recipe
from tcl.data.sources.columns import Columns
from tcl.distributed.share import ALONE, Share
from tcl.evaluation.statements import check_labels
from tcl.evaluation.tasks import EVALUATIONS, Result

TOP_K = 128  # candidates that are re-ranked, or answers that are decoded, unless the recipe says otherwise


class HeldOut:
    """A test split. It is read before the training, so that a mistake in it shows before and not after.

    Rows may lack labels or answers; then there are predictions alone.
    """

    def __init__(self, recipe: Recipe, sources: Sequence[str]) -> None:
        """Read the rows.

        Raises:
            UsageError: a source does not exist.
            DataError: a row cannot be used.
        """
        self._recipe, self._evaluation = recipe, EVALUATIONS[recipe.task]
        self._rows = self._evaluation.read(sources, recipe.data.images, Columns.of(recipe.data))

    def check(self, model: Any) -> None:
        """Does the model know every label?

        Raises:
            DataError: no.
        """
        if self._recipe.task in ("entailment", "nlvr2"):
            check_labels(self._rows, model.head.labels)

    def evaluate(self, model: Any, share: Share = ALONE) -> Result:
        """What the model does.

        Args:
            model: of the task, in evaluation mode.
            share: what this process does of the rows; the result is the same in all processes.

        Raises:
            DataError: too few images can be read.
        """
        return self._evaluation.run(
            model, self._rows, self._recipe.train.eval_top_k or TOP_K, self._recipe.data.batch_size, share
        )
