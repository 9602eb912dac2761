"""`tcl eval grounding`: which part of an image a text is about, found by the heat map of the text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from tcl.weights.find import find_model
from tcl_cli._console import out
from tcl_cli._options import (
    INPUT_PANEL,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    LayerOption,
    ModelOption,
    PredictionsOption,
    TextColumnOption,
    WorkersOption,
    option,
)
from tcl_cli.eval.evaluation import check_images, check_output, list_bad, load, processes, show

EPILOG = """\
[bold]Examples[/]

  tcl eval grounding --data scenes:val:64
  tcl eval grounding --model runs/refcoco --data regions.jsonl --images photos/ --predictions found.jsonl
  tcl eval grounding --model runs/refcoco --data refcoco+.jsonl --images coco/ --proposals dets.json --json
"""


def grounding(
    data: Annotated[
        list[str],
        option(
            help="Regions: JSON, JSONL, CSV, TSV or Parquet with image, text and box [x, y, width, height], or "
            "scenes: (built in). Repeat it for several.",
            panel=INPUT_PANEL,
        ),
    ],
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    proposals: Annotated[
        Path | None,
        option(
            metavar="JSON",
            help="Boxes of a detector to choose from, an object of image_id to boxes; default: those of the rows.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    model: ModelOption = None,
    layer: LayerOption = None,
    predictions: PredictionsOption = None,
    image_size: ImageSizeOption = None,
    batch_size: BatchOption = 32,
    workers: WorkersOption = 4,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Share of regions found (IoU of at least 0.5): by the best proposal, by the heat map alone, by its peak."""
    from tcl.data.sources.columns import Columns
    from tcl.evaluation.tasks import EVALUATIONS

    evaluation = EVALUATIONS["grounding"]
    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            check_images(images)
            check_output("--predictions", predictions, [*data, *([str(proposals)] if proposals else [])])
            columns = Columns(image_column, text_column)
            rows = evaluation.read(data, images, columns, proposals=proposals)
            loaded = load(location, place, image_size, "match scores")
        with out.progress("Grounding", total=len(rows)) as advance:
            result = evaluation.evaluate(
                loaded, rows, layer=layer, batch_size=batch_size, workers=workers, share=share, progress=advance
            )
        if share.rank:
            return
        list_bad(result.bad)

        def say() -> None:
            out.message(f"{location}: {len(result.predictions)} regions; Grad-CAM of fusion layer {result.layer}")
            out.table(evaluation.columns, result.table())

        values = {"task": "grounding", "model": location, "data": data, "layer": result.layer}
        values["splits"] = [asdict(figures) for figures in result.splits]
        show(values | {"bad": result.bad}, say, result.predictions, predictions, json)
