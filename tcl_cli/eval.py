"""`tcl eval TASK`: the published metrics of a task."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tcl_cli._console import out
from tcl_cli._options import INPUT_PANEL, SPEED_PANEL, Device, DeviceOption, JsonOption, ModelOption

eval_app = typer.Typer(help="Evaluate a model with the published metrics of a task.", no_args_is_help=True)

EPILOG = """\
[bold]Examples[/]

  tcl eval retrieval --data scenes:val:256
  tcl eval retrieval --data test.jsonl --images photos/ --rerank 128
  tcl eval retrieval --data scenes:val:64 --model runs/demo --json
"""


@eval_app.callback()
def tasks() -> None:
    """Evaluate a model with the published metrics of a task."""


@eval_app.command(epilog=EPILOG)
def retrieval(
    data: Annotated[
        list[str],
        typer.Option(
            help="Pairs: ALBEF JSON, JSONL, CSV, TSV, an image folder with .txt sidecars, or scenes: (built in). "
            "Repeat it for several.",
            rich_help_panel=INPUT_PANEL,
        ),
    ],
    images: Annotated[
        str | None,
        typer.Option(
            help="Folder that relative image paths start from; default: the folder of the data file.",
            show_default=False,
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    model: ModelOption = None,
    rerank: Annotated[
        int,
        typer.Option(min=0, help="Candidates per query that the fusion encoder re-ranks; 0 leaves it out."),
    ] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Images and texts at once.", rich_help_panel=SPEED_PANEL)] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.", rich_help_panel=SPEED_PANEL)] = 4,
    device: DeviceOption = Device.auto,
    json: JsonOption = False,
) -> None:
    """Recall at 1, 5 and 10 from image to text and back, by vectors alone and re-ranked."""
    from tcl.checkpoint import load_model
    from tcl.data.index import read_pairs
    from tcl.devices import choose_device
    from tcl.resolve import find_model
    from tcl.tasks.retrieval import evaluate_retrieval

    source = find_model(model)
    index = read_pairs(data, images)
    if index.skipped:
        out.warning(f"{index.skipped} rows skipped; the first: {index.skipped_reasons[0]}")
    loaded = load_model(source.location).to(choose_device(device.value))
    with out.progress("Evaluating") as advance:
        result = evaluate_retrieval(
            loaded, index, rerank=rerank, batch_size=batch_size, workers=workers, progress=advance
        )
    if result.bad:
        first = result.bad[0]
        out.warning(f"{len(result.bad)} images left out; the first: {first['image']}: {first['reason']}")
    if json:
        out.json({"task": "retrieval", "model": source.location, "data": data, **asdict(result)})
        return
    columns = ["", "TR R@1", "R@5", "R@10", "IR R@1", "R@5", "R@10"]
    named = {"vectors alone": result.vectors, f"best {rerank} re-ranked": result.reranked}
    rows = [
        [name, *(round(metrics[f"{way}_r{k}"], 1) for way in ("i2t", "t2i") for k in (1, 5, 10))]
        for name, metrics in named.items()
        if metrics
    ]
    out.message(
        f"{source.location}: {result.images} images, {result.texts} texts; TR image to text, IR text to image, %"
    )
    out.table(columns, rows)
