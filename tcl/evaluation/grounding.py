"""Visual grounding that needs no boxes in training: where the fusion encoder looks for a text, by Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcl.data.boxes import IOU_HIT, best_box, contains, inside_share, iou, peak, region_box
from tcl.data.labels.regions import BOX_HINT, Region
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError
from tcl.evaluation.batches import decode_batches, left_out
from tcl.evaluation.metrics import percent
from tcl.explain.gradcam import DETAIL, cross_attention_maps, default_layer, resample, word_spans
from tcl.models.tcl import TCL, ImageOutput


@dataclass
class SplitFigures:
    """Figures of the rows of a split, in percent.

    Attributes:
        split: its name, `all` for all rows.
        rows: that could be read.
        proposals: rows whose best proposal overlaps the box enough; None when a row has no proposals.
        heat_box: rows where the box around the peak does.
        peak: rows whose peak lies in the box.
        mean_iou: overlap of the box around the peak, on average.
    """

    split: str
    rows: int
    proposals: float | None
    heat_box: float
    peak: float
    mean_iou: float


@dataclass
class GroundingResult:
    """What a model says about regions.

    Attributes:
        splits: all rows first, then each split where there are any.
        layer: the fusion layer that was looked at.
        predictions: an object per row that could be read, for a JSONL: image, text, the box, `predicted` (the best
            proposal, or the box around the peak), `iou`, `peak`, and `match`, the probability of image and text.
        bad: images that could not be read, with their rows and why.
    """

    splits: list[SplitFigures]
    layer: int
    predictions: list[dict[str, Any]]
    bad: list[dict[str, str]]

    def figures(self) -> dict[str, float]:
        """Regions that are found, in percent: `accuracy` is that of the proposals, or without them of the heat map."""
        rows = self.splits[0]
        return {"accuracy": rows.heat_box if rows.proposals is None else rows.proposals, "peak": rows.peak}

    def table(self) -> list[list[object]]:
        """A line per split: its name, rows, shares of proposals, boxes and peaks, mean IoU."""
        return [
            [
                figures.split or "(none)",
                figures.rows,
                percent(figures.proposals),
                percent(figures.heat_box),
                percent(figures.peak),
                round(figures.mean_iou, 3),
            ]
            for figures in self.splits
        ]


def evaluate_grounding(
    model: TCL,
    regions: Sequence[Region],
    *,
    layer: int | None = None,
    batch_size: int = 32,
    workers: int = 4,
    share: Share = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> GroundingResult:
    """Find every region by the heat map of its text.

    Args:
        model: in evaluation mode, with its processor.
        regions: rows; neighbours about one image are faster than others.
        layer: fusion layer, numbered as in BERT; by default `tcl.explain.gradcam.default_layer`.
        batch_size: rows at once.
        workers: decoding threads.
        share: what this process does of the rows; the result is the same in all processes.
        progress: told how many rows were done since the last call.

    Raises:
        UsageError: the model has no such layer.
        DataError: there is no row, a box lies outside its image, or no image can be read.
    """
    if not regions:
        raise DataError("no regions to evaluate", hint="name a file with image, text and box")
    layer = default_layer(model) if layer is None else layer
    found: dict[int, dict[str, Any]] = {}
    unread: list[tuple[int, str, str]] = []
    own, advance = share.rows(len(regions), batch_size), share.progress(progress, len(regions))
    with share.agree():
        for batch in decode_batches(model.processor, [regions[row].image for row in own], batch_size, workers):
            unread += [(own[place], regions[own[place]].image, error.reason) for place, error in batch.errors.items()]
            if batch.rows:
                numbers = [own[place] for place in batch.rows]
                rows = [regions[number] for number in numbers]
                for region, size in zip(rows, batch.sizes, strict=True):
                    check_box(region, size)
                maps, probabilities = region_maps(model, batch.pixels, rows, layer)
                for number, *values in zip(numbers, rows, batch.sizes, maps, probabilities.tolist(), strict=True):
                    found[number] = _prediction(*values)
            advance(len(batch))
    found, unread = share.join_rows(found, unread)
    predictions = list(found.values())
    bad = left_out(regions, unread, len(predictions))
    return GroundingResult(_figures(predictions), layer, predictions, bad)


def region_maps(model: TCL, pixels: Any, regions: Sequence[Region], layer: int) -> tuple[Tensor, Tensor]:
    """Heat maps [R, rows, columns] of the texts, or of the phrases in them, and the probabilities of a match [R].

    Args:
        pixels: the image of each row, uint8 [R, 3, H, W].
    """
    places: dict[str, int] = {}
    image_of_row = [places.setdefault(region.image, len(places)) for region in regions]
    first = [image_of_row.index(place) for place in range(len(places))]
    input_ids, attention_mask = model.processor.texts([region.text for region in regions])
    with torch.no_grad():
        image = model.encode_image(pixels[first])  # each image once, however many texts are about it
        text = model.encode_text(input_ids, attention_mask)
    repeated = ImageOutput(image.image_embeds[image_of_row], image.image_feat[image_of_row])
    found = cross_attention_maps(model, repeated, text, layer)
    maps = found.caption_maps()
    for row, region in enumerate(regions):
        if region.phrase is not None:
            start, count = region.phrase
            spans, _ = word_spans(model, region.text, int(attention_mask[row].sum()))
            positions = [position for _, span in spans[start : start + count] for position in span]
            if positions:  # else it lies behind what the model reads, and the caption stands for it
                maps[row] = found.token_maps[row, positions].mean(dim=0)
    return maps.float(), found.logits.float().softmax(dim=-1)[:, 1]


def check_box(region: Region, size: tuple[int, int]) -> None:
    """Refuse a box that cannot be meant, for it is mostly outside the image, or smaller than a pixel.

    Raises:
        DataError: with the row.
    """
    if inside_share(region.box, size) < 0.5:
        raise DataError(
            f"{region.place}: most of box {list(region.box)} lies outside the image of {size[1]} x {size[0]} pixels",
            hint=BOX_HINT,
        )
    if region.box[2] < 1 or region.box[3] < 1:
        raise DataError(
            f"{region.place}: box {list(region.box)} is smaller than a pixel", hint=f"no fractions: {BOX_HINT}"
        )


def _prediction(region: Region, size: tuple[int, int], heat: Tensor, probability: float) -> dict[str, Any]:
    fine = resample(heat[None], (heat.shape[0] * DETAIL, heat.shape[1] * DETAIL))[0].cpu().numpy()
    highest, around = peak(fine, size), region_box(fine, size)
    chosen = None
    if region.proposals:
        chosen = region.proposals[best_box(resample(heat[None], size)[0].cpu().numpy(), region.proposals)]
    return {
        "image": region.image,
        "text": region.text,
        "split": region.split,
        "box": list(region.box),
        "predicted": list(chosen or around),
        "iou": iou(region.box, chosen or around),
        "from_proposals": chosen is not None,
        "heat_box": list(around),
        "heat_box_iou": iou(region.box, around),
        "peak": list(highest),
        "peak_inside": contains(region.box, highest),
        "match": probability,
    }


def _figures(predictions: list[dict[str, Any]]) -> list[SplitFigures]:
    splits = list(dict.fromkeys(row["split"] for row in predictions))
    figures = [_split_figures("all", predictions)]
    if splits != [""]:
        figures += [_split_figures(split, [row for row in predictions if row["split"] == split]) for split in splits]
    return figures


def _split_figures(split: str, rows: list[dict[str, Any]]) -> SplitFigures:
    def share(hits: list[bool]) -> float:
        return float(100.0 * np.mean(hits))

    return SplitFigures(
        split,
        len(rows),
        share([row["iou"] >= IOU_HIT for row in rows]) if all(row["from_proposals"] for row in rows) else None,
        share([row["heat_box_iou"] >= IOU_HIT for row in rows]),
        share([row["peak_inside"] for row in rows]),
        float(np.mean([row["heat_box_iou"] for row in rows])),
    )
