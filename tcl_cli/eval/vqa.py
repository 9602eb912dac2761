"""`tcl eval vqa`: soft accuracy of answers, by the rules of the VQA challenge."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcl.weights.find import find_model
from tcl_cli._console import out
from tcl_cli._options import (
    INPUT_PANEL,
    OUTPUT_PANEL,
    BatchOption,
    DeviceOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    PredictionsOption,
    WorkersOption,
)
from tcl_cli.eval.evaluation import (
    check_images,
    check_output,
    list_bad,
    load_for,
    percent,
    processes,
    write_lines,
    write_text,
)

if TYPE_CHECKING:
    from tcl.data.labels.questions import Question
    from tcl.evaluation.vqa import VqaResult

EPILOG = """\
[bold]Examples[/]

  tcl eval vqa --model runs/vqa --data test.jsonl --images photos/
  tcl eval vqa --model runs/vqa --data questions.json --data annotations.json --images coco/ --predictions said.jsonl
  tcl eval vqa --model runs/vqa --data vqa_test.json --images coco/ --answers answer_list.json --submission result.json
"""


def vqa(
    data: Annotated[
        list[str],
        typer.Option(
            help="Questions: JSON, JSONL, CSV, TSV or Parquet; of VQA v2 the file of questions, and that of "
            "annotations too. Without answers there are only predictions. Repeat it for several.",
            rich_help_panel=INPUT_PANEL,
        ),
    ],
    images: ImagesOption = None,
    model: ModelOption = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Answers to choose from, a JSON list or a text file with one per line; default: those the model was "
            "fine-tuned with.",
            show_default=False,
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    k: Annotated[
        int, typer.Option("--k", min=1, help="Answers per question that are decoded, at most the list.")
    ] = 128,
    predictions: PredictionsOption = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Write what the VQA challenge takes; a file that is there is replaced.",
            show_default=False,
            rich_help_panel=OUTPUT_PANEL,
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

    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            check_images(images)
            _check_outputs(predictions, submission, data)
            listed = read_answer_list(answers) if answers else None
            rows = _read(data, images, only_metric=predictions is None and submission is None)
            loaded = load_for("vqa", location, place, image_size, listed)
            if listed:
                loaded.head = loaded.head.model_copy(update={"labels": listed})
        from tcl.evaluation.vqa import evaluate_vqa

        with out.progress("Answering", total=len(rows)) as advance:
            result = evaluate_vqa(
                loaded, rows, top_k=k, batch_size=batch_size, workers=workers, share=share, progress=advance
            )
        if share.rank:
            return
        list_bad(result.bad)
        if json:
            values = {"task": "vqa", "model": location, "data": data, "questions": len(result.predictions)}
            values |= {"answers": len(loaded.head.labels), "k": min(k, len(loaded.head.labels))}
            values |= {"accuracy": result.accuracy, "outside": result.outside}
            values["types"] = {kind: {"accuracy": value, "questions": n} for kind, (value, n) in result.by_type.items()}
            values |= {"bad": result.bad, "predictions": predictions and str(predictions)}
            out.json(values | {"submission": submission and str(submission)})
        else:
            out.message(
                f"{location}: {len(result.predictions)} questions, {len(loaded.head.labels)} answers to choose from"
            )
            _table(result)
        if predictions:
            write_lines(predictions, result.predictions)
            out.message(f"predictions in {predictions}")
        if submission:
            write_text(submission, json_module.dumps(result.submission(), ensure_ascii=False) + "\n")
            out.message(f"submission in {submission}")
            if len(result.predictions) < len(rows):
                out.warning(
                    f"{submission} lacks {len(rows) - len(result.predictions)} questions: their images are unreadable"
                )


def _check_outputs(predictions: Path | None, submission: Path | None, data: list[str]) -> None:
    from tcl.errors import UsageError

    check_output("--predictions", predictions, data)
    check_output("--submission", submission, data)
    if predictions and submission and predictions.absolute() == submission.absolute():
        raise UsageError(f"--predictions and --submission are both {predictions}", hint="choose two names")


def _read(data: list[str], images: str | None, only_metric: bool) -> list[Question]:
    from tcl.data.labels.questions import read_questions
    from tcl.errors import UsageError

    rows = list(read_questions(data, images, need_answers=False))
    answered = sum(bool(row.answers) for row in rows)
    if not answered and only_metric:
        raise UsageError(
            f"{', '.join(data)}: no question has an answer, so there is nothing to measure",
            hint="for predictions alone: --predictions FILE.jsonl or --submission FILE.json; of VQA v2, name the file "
            "of annotations too",
        )
    if answered < len(rows):
        out.message(f"{len(rows) - answered} of {len(rows)} questions have no answer: predictions only")
    return rows


def _table(result: VqaResult) -> None:
    if result.accuracy is None:
        return
    answered = sum(number for _, number in result.by_type.values())
    if result.outside:
        out.message(
            f"of {result.outside} of {answered} questions no answer is in the list, so the model cannot be right"
        )
    rows: list[list[object]] = [[kind, number, percent(share)] for kind, (share, number) in result.by_type.items()]
    out.table(["type", "questions", "accuracy %"], [*rows, ["all", answered, percent(result.accuracy)]])
