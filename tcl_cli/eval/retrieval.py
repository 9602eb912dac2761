"""`tcl eval retrieval`: recall in both directions, by vectors alone and re-ranked, beside what was published."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl.evaluation.published import RETRIEVAL, Published, RetrievalProtocol, find_protocol
from tcl.weights.find import find_model
from tcl.weights.untrained import Use
from tcl_cli._console import Advance, counted, out
from tcl_cli._options import (
    INPUT_PANEL,
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
from tcl_cli.eval.evaluation import check_output, list_bad, load, processes, show

if TYPE_CHECKING:
    from tcl.data.pairs.table import PairIndex
    from tcl.evaluation.retrieval import RetrievalResult

EPILOG = """\
[bold]Examples[/]

  tcl eval retrieval --data scenes:val:256
  tcl eval retrieval --data test.jsonl --images photos/ --k 64
  tcl eval retrieval --data dataset_coco.json#split=test --images coco/ --protocol coco --image-size 384
  tcl eval retrieval --data scenes:val:64 --model runs/demo --json
  tcl eval retrieval --data test.jsonl --images photos/ --predictions nearest.jsonl
  torchrun --nproc-per-node gpu -m tcl_cli eval retrieval --data coco_test.json --images coco/
"""

CANDIDATES = 128  # unless a protocol says otherwise

ProtocolName = StrEnum("ProtocolName", [(protocol.name, protocol.name) for protocol in RETRIEVAL])  # type: ignore[misc]
"""Names of the published protocols."""


def retrieval(
    data: Annotated[
        list[str],
        option(
            help="Pairs: ALBEF, COCO or Karpathy JSON, JSONL, CSV, TSV, Parquet, tar shards, Flickr30k's .token, an "
            "image folder with .txt sidecars, or scenes: (built in). Repeat it for several.",
            panel=INPUT_PANEL,
        ),
    ],
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    model: ModelOption = None,
    protocol: Annotated[
        ProtocolName | None,
        option(
            help="A published evaluation: says which checkpoint it used, sets its --k, and prints its figures beside "
            "the measured ones.",
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        option(
            "--rerank",
            "--k",
            min=0,
            help="Candidates per query that the fusion encoder re-ranks, at most the set; 0 leaves it out. Default: "
            "128, or that of the protocol.",
        ),
    ] = None,
    predictions: PredictionsOption = None,
    image_size: ImageSizeOption = None,
    batch_size: BatchOption = 64,
    workers: WorkersOption = 4,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Recall at 1, 5 and 10 from image to text and back, by vectors alone and re-ranked."""
    from tcl.evaluation.tasks import EVALUATIONS

    chosen = find_protocol(protocol.value) if protocol else None
    candidates = rerank if rerank is not None else chosen.candidates if chosen else CANDIDATES
    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            check_output("--predictions", predictions, data)
            index = _read(data, images, image_column, text_column)
            uses: tuple[Use, ...] = ("vectors", "match scores") if candidates else ("vectors",)
            loaded = load(location, place, image_size, *uses)
        if chosen:
            out.message(f"{chosen.name}: {chosen.dataset}; the published figures are of {chosen.checkpoint}")
        with _Phases() as phases:
            result = EVALUATIONS["retrieval"].evaluate(
                loaded,
                index,
                rerank=candidates,
                batch_size=batch_size,
                workers=workers,
                share=share,
                progress=phases,
            )
        if share.rank == 0:
            about = {"task": "retrieval", "model": location, "data": data}
            _report(result, about, candidates, loaded.processor.image_size, chosen, predictions, json)


def _report(
    result: RetrievalResult,
    about: dict[str, Any],
    candidates: int,
    size: tuple[int, int],
    protocol: RetrievalProtocol | None,
    predictions: Path | None,
    json: bool,
) -> None:
    from tcl.evaluation.tasks import EVALUATIONS

    list_bad(result.bad)
    differences = protocol.differences(result.images, result.texts, candidates, size) if protocol else []
    for difference in differences:
        out.warning(f"not as published: {difference}")

    def say() -> None:
        sizes = f"{counted(result.images, 'images')}, {counted(result.texts, 'texts')}"
        out.message(f"{about['model']}: {sizes}; TR image to text, IR text to image, %")
        out.table(EVALUATIONS["retrieval"].columns, _rows(result, candidates, protocol))
        if protocol and any(row.to_verify for row in protocol.rows):
            out.message("? has not been compared with the paper")

    depth = {"texts": min(candidates, result.texts), "images": min(candidates, result.images)}
    values = about | {"image_size": list(size), "rerank": depth} | result.to_dict()
    more = _protocol_values(protocol, differences) if protocol else {}
    show(values, say, result.ranked.predictions(), predictions, json, more)


def _read(data: list[str], images: str | None, image_column: str | None, text_column: str | None) -> PairIndex:
    from tcl.data.pairs.table import read_pairs
    from tcl.data.sources.columns import Columns

    with out.progress("Reading data") as advance:
        index = read_pairs(data, images, Columns(image_column, text_column), progress=advance)
    if index.skipped:
        out.warning(f"{counted(index.skipped, 'rows')} skipped; the first: {index.skipped_reasons[0]}")
    return index


def _rows(result: RetrievalResult, candidates: int, protocol: RetrievalProtocol | None) -> list[list[object]]:
    """The measured figures, then the published ones."""
    texts, images = min(candidates, result.texts), min(candidates, result.images)
    best = f"best {texts}" if texts == images else f"best {texts} texts, {images} images"
    measured = {"vectors alone": result.vectors, f"{best} re-ranked": result.reranked}
    rows: list[list[object]] = [
        [name, *(round(figures[figure], 1) for figure in _figure_names())]
        for name, figures in measured.items()
        if figures
    ]
    for published in protocol.rows if protocol else ():
        rows.append([f"published: {published.what}", *(_cell(published, figure) for figure in _figure_names())])
    return rows


def _figure_names() -> list[str]:
    return [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


def _cell(published: Published, figure: str) -> object:
    value = round(published.figures[figure], 1)
    return f"{value}?" if figure in published.to_verify else value


def _protocol_values(protocol: RetrievalProtocol, differences: list[str]) -> dict[str, Any]:
    return {
        "protocol": {
            "name": protocol.name,
            "dataset": protocol.dataset,
            "checkpoint": protocol.checkpoint,
            "not_as_published": differences,
            "published": [asdict(row) for row in protocol.rows],
        }
    }


class _Phases:
    """A progress bar for the images, then another for the pairs, whose number is known when all are encoded."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._names = iter(("Encoding images", "Re-ranking pairs"))
        self._done = 0
        self._total = -1

    def __call__(self, done: int, /, *, total: int) -> None:
        if total != self._total or self._advance is None:
            self._stack.close()
            first, self._total = self._done, total
            self._advance = self._stack.enter_context(out.progress(next(self._names), total - first))
        self._done += done
        self._advance(done)

    def __enter__(self) -> _Phases:
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()
