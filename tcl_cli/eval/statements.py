"""`tcl eval entailment` and `tcl eval nlvr2`: texts about one image or two, classified."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tcl.errors import UsageError
from tcl.weights.find import find_model
from tcl_cli._console import counted, out
from tcl_cli._options import (
    INPUT_PANEL,
    BatchOption,
    Device,
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
from tcl_cli.eval.evaluation import check_images, check_output, list_bad, load_for, processes, show

if TYPE_CHECKING:
    from tcl.data.labels.statements import StatementTask

ENTAILMENT_EPILOG = """\
[bold]Examples[/]

  tcl eval entailment --model runs/ve --data test.jsonl --images photos/
  tcl eval entailment --model runs/ve --data snli_ve_test.jsonl --images flickr30k-images/ --json
  tcl eval entailment --model runs/ve --data unlabelled.csv --predictions said.jsonl
"""
NLVR2_EPILOG = """\
[bold]Examples[/]

  tcl eval nlvr2 --model runs/nlvr2 --data dev.json --images nlvr2/
  tcl eval nlvr2 --model runs/nlvr2 --data test1.json --images nlvr2/ --predictions said.jsonl --json
"""

DataOption = Annotated[
    list[str],
    option(
        help="Rows: JSON, JSONL, CSV, TSV or Parquet, published, original or one's own; FILE#COLUMN=VALUE takes some "
        "of them. Without labels there are only predictions. Repeat it for several.",
        panel=INPUT_PANEL,
    ),
]


def entailment(
    data: DataOption,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    image_size: ImageSizeOption = None,
    batch_size: BatchOption = 32,
    workers: WorkersOption = 4,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Accuracy of visual entailment (SNLI-VE, or classes of one's own), with a line per class."""
    columns = image_column, text_column
    _evaluate("entailment", data, images, columns, model, predictions, image_size, batch_size, workers, device, json)


def nlvr2(
    data: DataOption,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    image_size: ImageSizeOption = None,
    batch_size: BatchOption = 32,
    workers: WorkersOption = 4,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Accuracy of statements about two images (NLVR2, or classes of one's own), with a line per class."""
    columns = image_column, text_column
    _evaluate("nlvr2", data, images, columns, model, predictions, image_size, batch_size, workers, device, json)


def _evaluate(
    task: StatementTask,
    data: list[str],
    images: str | None,
    columns: tuple[str | None, str | None],
    model: str | None,
    predictions: Path | None,
    image_size: str | None,
    batch_size: int,
    workers: int,
    device: Device,
    json: bool,
) -> None:
    from tcl.data.sources.columns import Columns
    from tcl.evaluation.tasks import EVALUATIONS

    evaluation = EVALUATIONS[task]
    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            check_images(images)
            check_output("--predictions", predictions, data)
            rows = evaluation.read(data, images, Columns(*columns))
            labelled = sum(row.label is not None for row in rows)
            if not labelled and predictions is None:
                raise UsageError(
                    f"{', '.join(data)}: no row has a label, so there is nothing to measure",
                    hint="for predictions alone: --predictions FILE.jsonl",
                )
            if labelled < len(rows):
                out.message(f"{len(rows) - labelled} of {len(rows)} rows have no label: predictions only")
            loaded = load_for(task, location, place, image_size)
        with out.progress("Evaluating", total=len(rows)) as advance:
            result = evaluation.evaluate(
                loaded, rows, batch_size=batch_size, workers=workers, share=share, progress=advance
            )
        if share.rank:
            return
        list_bad(result.bad)

        def say() -> None:
            out.message(f"{location}: {counted(len(result.predictions), 'rows')}")
            if result.accuracy is not None:
                out.table(evaluation.columns, result.table())

        values = {"task": task, "model": location, "data": data, "rows": len(result.predictions)}
        values |= {"accuracy": result.accuracy, "classes": [asdict(figures) for figures in result.classes]}
        show(values | {"bad": result.bad}, say, result.predictions, predictions, json)
