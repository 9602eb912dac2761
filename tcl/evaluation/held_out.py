"""A model on the test split of its task: figures, and what it says about every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tcl.config.recipe import Recipe
from tcl.data.labels.questions import read_questions
from tcl.data.labels.regions import read_regions
from tcl.data.labels.statements import read_statements
from tcl.data.pairs.table import read_pairs
from tcl.distributed.share import ALONE, Share
from tcl.evaluation.grounding import GroundingResult, evaluate_grounding
from tcl.evaluation.retrieval import evaluate_retrieval
from tcl.evaluation.statements import check_labels, evaluate_statements
from tcl.evaluation.vqa import evaluate_vqa
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL

TOP_K = 128  # candidates that are re-ranked, or answers that are decoded, unless the recipe says otherwise


@dataclass
class HeldOutResult:
    """What a model does on a test split.

    Attributes:
        figures: metrics in percent; none where no row has a label.
        predictions: an object per row, for a JSONL; of retrieval one per query, of both directions.
        bad: images that could not be read, and why.
    """

    figures: dict[str, float]
    predictions: list[dict[str, Any]]
    bad: list[dict[str, str]]


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
        images = recipe.data.images
        self.task, self._top_k, self._batch_size = recipe.task, recipe.train.eval_top_k or TOP_K, recipe.data.batch_size
        self._rows: Any
        if recipe.task == "vqa":
            self._rows = list(read_questions(sources, images, need_answers=False))
        elif recipe.task == "grounding":
            self._rows = list(read_regions(sources, images))
        elif recipe.task in ("entailment", "nlvr2"):
            self._rows = list(read_statements(recipe.task, sources, images, need_labels=False))
        else:
            self._rows = read_pairs(sources, images)

    def check(self, model: TCL) -> None:
        """Does the model know every label?

        Raises:
            DataError: no.
        """
        if self.task in ("entailment", "nlvr2"):
            check_labels(self._rows, cast(TaskModel, model).head.labels)

    def evaluate(self, model: Any, share: Share = ALONE) -> HeldOutResult:
        """What the model does.

        Args:
            model: of the task, in evaluation mode.
            share: what this process does of the rows; the result is the same in all processes.

        Raises:
            DataError: too few images can be read.
        """
        if self.task == "vqa":
            answers = evaluate_vqa(model, self._rows, top_k=self._top_k, batch_size=self._batch_size, share=share)
            by_type = {f"accuracy_{kind}": accuracy for kind, (accuracy, _) in answers.by_type.items()}
            figures = {} if answers.accuracy is None else {"accuracy": answers.accuracy, **by_type}
            return HeldOutResult(figures, answers.predictions, answers.bad)
        if self.task == "grounding":
            found = evaluate_grounding(model, self._rows, batch_size=self._batch_size, share=share)
            return HeldOutResult(grounding_figures(found), found.predictions, found.bad)
        if self.task in ("entailment", "nlvr2"):
            classes = evaluate_statements(model, self._rows, batch_size=self._batch_size, share=share)
            figures = {} if classes.accuracy is None else {"accuracy": classes.accuracy}
            return HeldOutResult(figures, classes.predictions, classes.bad)
        recalls = evaluate_retrieval(model, self._rows, rerank=self._top_k, batch_size=self._batch_size, share=share)
        return HeldOutResult(recalls.figures(), list(recalls.ranked.predictions()), recalls.bad)


def grounding_figures(result: GroundingResult) -> dict[str, float]:
    """Regions that are found, in percent: `accuracy` is that of the proposals, or without them of the heat map."""
    rows = result.splits[0]
    return {"accuracy": rows.heat_box if rows.proposals is None else rows.proposals, "peak": rows.peak}
