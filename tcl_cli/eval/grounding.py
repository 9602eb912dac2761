"""`tcl eval grounding`: which part of an image a text is about, found by the heat map of the text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tcl.weights.find import find_model
from tcl_cli._console import out
from tcl_cli._options import (
    INPUT_PANEL,
    BatchOption,
    DeviceOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    LayerOption,
    ModelOption,
    PredictionsOption,
    WorkersOption,
)
from tcl_cli.eval.evaluation import check_images, check_output, list_bad, load, percent, processes, write_lines

EPILOG = """\
[bold]Examples[/]

  tcl eval grounding --data scenes:val:64
  tcl eval grounding --model runs/refcoco --data regions.jsonl --images photos/ --predictions found.jsonl
  tcl eval grounding --model runs/refcoco --data refcoco+.jsonl --images coco/ --proposals dets.json --json
"""


def grounding(
    data: Annotated[
        list[str],
        typer.Option(
            help="Regions: JSON, JSONL, CSV, TSV or Parquet with image, text and box [x, y, width, height], or "
            "scenes: (built in). Repeat it for several.",
            rich_help_panel=INPUT_PANEL,
        ),
    ],
    images: ImagesOption = None,
    proposals: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Boxes of a detector to choose from, an object of image_id to boxes; default: those of the rows.",
            show_default=False,
            rich_help_panel=INPUT_PANEL,
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
    from tcl.data.labels.regions import read_regions

    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            check_images(images)
            check_output("--predictions", predictions, [*data, *([str(proposals)] if proposals else [])])
            rows = list(read_regions(data, images, proposals=proposals))
            loaded = load(location, place, image_size, "match scores")
        from tcl.evaluation.grounding import evaluate_grounding

        with out.progress("Grounding", total=len(rows)) as advance:
            result = evaluate_grounding(
                loaded, rows, layer=layer, batch_size=batch_size, workers=workers, share=share, progress=advance
            )
        if share.rank:
            return
        list_bad(result.bad)
        if json:
            values = {"task": "grounding", "model": location, "data": data, "layer": result.layer}
            values |= {"splits": [asdict(figures) for figures in result.splits], "bad": result.bad}
            out.json(values | {"predictions": predictions and str(predictions)})
        else:
            out.message(f"{location}: {len(result.predictions)} regions; Grad-CAM of fusion layer {result.layer}")
            columns = ["split", "rows", "proposals %", "heat box %", "peak inside %", "mean IoU"]
            cells: list[list[object]] = [
                [
                    figures.split or "(none)",
                    figures.rows,
                    percent(figures.proposals),
                    percent(figures.heat_box),
                    percent(figures.peak),
                    round(figures.mean_iou, 3),
                ]
                for figures in result.splits
            ]
            out.table(columns, cells)
        if predictions:
            write_lines(predictions, result.predictions)
            out.message(f"predictions in {predictions}")
