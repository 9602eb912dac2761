"""What visual entailment and NLVR2 share: a text is classified, given its one or two images.

Letters: R texts, n images per text, S tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcl.data.labels.statements import Statement
from tcl.data.tokenizer import clean_caption
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError
from tcl.evaluation.batches import left_out, rows_by_image
from tcl.evaluation.metrics import ClassFigures, accuracy, class_table, percent
from tcl.models.classifier import Classifier

MAX_WORDS = {"entailment": 30, "nlvr2": 40}  # of a text, as published


def tokenize_statements(model: Classifier, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """`input_ids` [R, S] and mask, bool [R, S]; as published, only what the model has no positions for is cut."""
    words = MAX_WORDS[model.head.task]
    cleaned = [clean_caption(text, words) for text in texts]
    input_ids, mask = model.processor.tokenizer(cleaned, model.max_positions, clean=False)
    return torch.from_numpy(input_ids), torch.from_numpy(mask).bool()


def check_labels(statements: Sequence[Statement], labels: Sequence[str]) -> None:
    """Refuse a label that the model does not know.

    Raises:
        DataError: there is one.
    """
    for statement in statements:
        if statement.label is not None and statement.label not in labels:
            raise DataError(
                f"{statement.place}: unknown label {statement.label!r}",
                hint=f"the model knows {', '.join(labels[:20])}",
            )


@dataclass
class StatementResult:
    """What a model says about statements.

    Attributes:
        accuracy: in percent, over rows with a label; None without such rows.
        classes: a line per class, over the same rows.
        predictions: an object per row that could be read, for a JSONL: images, text, the label where there is one,
            `predicted`, `confidence`, and `top` with the likeliest classes.
        bad: images that could not be read, with their rows and why.
    """

    accuracy: float | None
    classes: list[ClassFigures]
    predictions: list[dict[str, Any]]
    bad: list[dict[str, str]]

    def figures(self) -> dict[str, float]:
        """The accuracy, where there is one."""
        return {} if self.accuracy is None else {"accuracy": self.accuracy}

    def table(self) -> list[list[object]]:
        """A line per class, and one for all: class, rows, accuracy, precision, F1."""
        rows: list[list[object]] = [
            [line.label, line.rows, percent(line.recall), percent(line.precision), percent(line.f1)]
            for line in self.classes
        ]
        return [*rows, ["all", sum(line.rows for line in self.classes), percent(self.accuracy), "-", "-"]]


@torch.inference_mode()
def evaluate_statements(
    model: Classifier,
    statements: Sequence[Statement],
    *,
    batch_size: int = 32,
    workers: int = 4,
    top: int = 5,
    share: Share = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> StatementResult:
    """Classify every statement, and compare with its label where it has one.

    Args:
        model: in evaluation mode, with its processor.
        statements: rows; labels are those of `model.head`.
        batch_size: images, and texts, at once.
        workers: decoding threads.
        top: classes that a prediction lists.
        share: what this process does of the rows; the result is the same in all processes.
        progress: told how many rows were done since the last call.

    Raises:
        DataError: a label is none of the model's, or no image can be read.
    """
    labels = model.head.labels
    check_labels(statements, labels)
    predictions: dict[int, dict[str, Any]] = {}
    unread: list[tuple[int, str, str]] = []
    references = [statement.images for statement in statements]
    advance = share.progress(progress, len(statements))
    with share.agree():
        for batch in rows_by_image(model, references, batch_size, workers, lambda *why: unread.append(why), share):
            input_ids, mask = tokenize_statements(model, [statements[row].text for row in batch.rows])
            logits = model.classify(batch.images, input_ids, mask, batch.image_of_row)
            best = logits.float().softmax(dim=1).topk(min(top, len(labels)))
            for row, shares, numbers in zip(batch.rows, best.values.tolist(), best.indices.tolist(), strict=True):
                predictions[row] = _prediction(statements[row], [labels[number] for number in numbers], shares)
            advance(len(batch.rows))
    predictions, unread = share.join_rows(predictions, unread)
    bad = left_out(statements, unread, len(predictions))
    in_order = list(predictions.values())
    judged = [
        (labels.index(row["predicted"]), labels.index(row["label"])) for row in in_order if row["label"] is not None
    ]
    if not judged:
        return StatementResult(None, [], in_order, bad)
    predicted, wanted = np.array(judged).T
    return StatementResult(accuracy(predicted, wanted), class_table(predicted, wanted, labels), in_order, bad)


def _prediction(statement: Statement, labels: list[str], shares: list[float]) -> dict[str, Any]:
    return {
        "images": list(statement.images),
        "text": statement.text,
        "label": statement.label,
        "predicted": labels[0],
        "confidence": shares[0],
        "top": [{"label": label, "confidence": share} for label, share in zip(labels, shares, strict=True)],
    }
