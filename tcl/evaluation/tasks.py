"""How a model is evaluated for each task: what reads the rows, what computes the figures, and the table of them.

`tcl eval`, `tcl finetune --test` and validation in training go by `EVALUATIONS`. Evaluations are imported when they
begin, for reading needs no torch: what is wrong with the rows is said before it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tcl.data.labels.questions import read_questions
from tcl.data.labels.regions import read_regions
from tcl.data.labels.statements import read_statements
from tcl.data.pairs.table import read_pairs
from tcl.distributed.share import Share


class Result(Protocol):
    """What a model does on some rows.

    Attributes:
        bad: images that could not be read, and why.
    """

    bad: list[dict[str, str]]

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """An object per row, for a JSONL; of retrieval one per query, of both directions."""

    def figures(self) -> dict[str, float]:
        """Metrics in percent, `accuracy` among them but for retrieval; none where no row has a label."""


@dataclass(frozen=True)
class Evaluation:
    """How a model is evaluated.

    Attributes:
        read: sources, the folder of images, and the columns, to rows, which may lack labels.
        evaluate: a model in evaluation mode, and rows, to a `Result`; by `batch_size`, `workers`, `share`, `progress`.
        columns: of the table that shows the figures.
        depth: the option of `evaluate` for how many candidates are re-ranked, or answers decoded, where it has one.
    """

    read: Callable[..., Any]
    evaluate: Callable[..., Any]
    columns: tuple[str, ...]
    depth: str | None = None

    def run(self, model: Any, rows: Any, depth: int, batch_size: int, share: Share) -> Result:
        """The result, with settings that all evaluations have.

        Args:
            model: of the task, in evaluation mode.
            rows: of `read`.
            depth: candidates that are re-ranked, or answers that are decoded; nothing elsewhere.
            batch_size: images at once.
            share: what this process does of the rows; the result is the same in all processes.

        Raises:
            DataError: too few images can be read.
        """
        options = {self.depth: depth} if self.depth else {}
        result: Result = self.evaluate(model, rows, batch_size=batch_size, share=share, **options)
        return result


def _list(read: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    return list(read(*arguments, **options))


def _retrieval(*arguments: Any, **options: Any) -> Any:
    from tcl.evaluation.retrieval import evaluate_retrieval

    return evaluate_retrieval(*arguments, **options)


def _grounding(*arguments: Any, **options: Any) -> Any:
    from tcl.evaluation.grounding import evaluate_grounding

    return evaluate_grounding(*arguments, **options)


def _statements(*arguments: Any, **options: Any) -> Any:
    from tcl.evaluation.statements import evaluate_statements

    return evaluate_statements(*arguments, **options)


def _vqa(*arguments: Any, **options: Any) -> Any:
    from tcl.evaluation.vqa import evaluate_vqa

    return evaluate_vqa(*arguments, **options)


_RECALLS = ("", "TR R@1", "R@5", "R@10", "IR R@1", "R@5", "R@10")
_REGIONS = ("split", "rows", "proposals %", "heat box %", "peak inside %", "mean IoU")
_CLASSES = ("class", "rows", "accuracy %", "precision %", "F1 %")
_TYPES = ("type", "questions", "accuracy %")

EVALUATIONS = {
    "retrieval": Evaluation(read_pairs, _retrieval, _RECALLS, "rerank"),
    "grounding": Evaluation(partial(_list, read_regions), _grounding, _REGIONS),
    "entailment": Evaluation(partial(_list, read_statements, "entailment", need_labels=False), _statements, _CLASSES),
    "nlvr2": Evaluation(partial(_list, read_statements, "nlvr2", need_labels=False), _statements, _CLASSES),
    "vqa": Evaluation(partial(_list, read_questions, need_answers=False), _vqa, _TYPES, "top_k"),
}
"""By task. Zero-shot classification, which has no rows but folders, is `tcl.evaluation.classification` alone."""
