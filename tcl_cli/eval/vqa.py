"""`tcl eval vqa`: soft accuracy of answers, by the rules of the VQA challenge."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tcl.errors import UsageError
from tcl.weights.find import find_model
from tcl_cli._console import out
from tcl_cli._options import (
    INPUT_PANEL,
    OUTPUT_PANEL,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    PredictionsOption,
    TextColumnOption,
    WorkersOption,
    option,
)
from tcl_cli.eval.evaluation import check_images, check_output, list_bad, load_for, processes, show, write_text

if TYPE_CHECKING:
    from tcl.data.labels.questions import Question

EPILOG = """\
[bold]Examples[/]

  tcl eval vqa --model runs/vqa --data test.jsonl --images photos/
  tcl eval vqa --model runs/vqa --data questions.json --data annotations.json --images coco/ --predictions said.jsonl
  tcl eval vqa --model runs/vqa --data vqa_test.json --images coco/ --answers answer_list.json --submission result.json
"""


def vqa(
    data: Annotated[
        list[str],
        option(
            help="Questions: JSON, JSONL, CSV, TSV or Parquet; of VQA v2 the file of questions, and that of "
            "annotations too. Without answers there are only predictions. Repeat it for several.",
            panel=INPUT_PANEL,
        ),
    ],
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    model: ModelOption = None,
    answers: Annotated[
        Path | None,
        option(
            help="Answers to choose from, a JSON list or a text file with one per line; default: those the model was "
            "fine-tuned with.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    k: Annotated[int, option("--k", min=1, help="Answers per question that are decoded, at most the list.")] = 128,
    predictions: PredictionsOption = None,
    submission: Annotated[
        Path | None,
        option(
            metavar="JSON",
            help="Write what the VQA challenge takes; a file that is there is replaced.",
            panel=OUTPUT_PANEL,
        ),
    ] = None,
    image_size: ImageSizeOption = None,
    batch_size: BatchOption = 32,
    workers: WorkersOption = 4,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """VQA's soft accuracy, in all and by type of question."""
    from tcl.data.labels.questions import read_answer_list
    from tcl.data.sources.columns import Columns
    from tcl.evaluation.tasks import EVALUATIONS

    evaluation = EVALUATIONS["vqa"]
    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            check_images(images)
            _check_outputs(predictions, submission, data)
            listed = read_answer_list(answers) if answers else None
            rows = evaluation.read(data, images, Columns(image_column, text_column))
            _check_answered(rows, data, only_metric=predictions is None and submission is None)
            loaded = load_for("vqa", location, place, image_size, listed)
            if listed:
                loaded.head = loaded.head.model_copy(update={"labels": listed})
        with out.progress("Answering", total=len(rows)) as advance:
            result = evaluation.evaluate(
                loaded, rows, top_k=k, batch_size=batch_size, workers=workers, share=share, progress=advance
            )
        if share.rank:
            return
        list_bad(result.bad)
        labels = len(loaded.head.labels)

        def say() -> None:
            out.message(f"{location}: {len(result.predictions)} questions, {labels} answers to choose from")
            if result.accuracy is None:
                return
            if result.outside:
                outside = f"of {result.outside} of {sum(number for _, number in result.by_type.values())} questions"
                out.message(f"{outside} no answer is in the list, so the model cannot be right")
            out.table(evaluation.columns, result.table())

        types = {kind: {"accuracy": value, "questions": number} for kind, (value, number) in result.by_type.items()}
        values = {"task": "vqa", "model": location, "data": data, "questions": len(result.predictions)}
        values |= {"answers": labels, "k": min(k, labels)}
        values |= {"accuracy": result.accuracy, "outside": result.outside, "types": types}
        more = {"submission": submission and str(submission)}
        show(values | {"bad": result.bad}, say, result.predictions, predictions, json, more)
        if submission:
            write_text(submission, json_module.dumps(result.submission(), ensure_ascii=False) + "\n")
            out.message(f"submission in {submission}")
            if len(result.predictions) < len(rows):
                out.warning(
                    f"{submission} lacks {len(rows) - len(result.predictions)} questions: their images are unreadable"
                )


def _check_outputs(predictions: Path | None, submission: Path | None, data: list[str]) -> None:
    check_output("--predictions", predictions, data)
    check_output("--submission", submission, data)
    if predictions and submission and predictions.absolute() == submission.absolute():
        raise UsageError(f"--predictions and --submission are both {predictions}", hint="choose two names")


def _check_answered(rows: list[Question], data: list[str], only_metric: bool) -> None:
    answered = sum(bool(row.answers) for row in rows)
    if not answered and only_metric:
        raise UsageError(
            f"{', '.join(data)}: no question has an answer, so there is nothing to measure",
            hint="for predictions alone: --predictions FILE.jsonl or --submission FILE.json; of VQA v2, name the file "
            "of annotations too",
        )
    if answered < len(rows):
        out.message(f"{len(rows) - answered} of {len(rows)} questions have no answer: predictions only")
