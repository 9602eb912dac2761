"""The curves of a run on its report's page: losses, validation, and what the health monitor looks at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tcl.report.charts import Line, Point, chart
from tcl.report.records import is_figure

Records = Sequence[Mapping[str, Any]]
Series = dict[str, list[Point]]  # the curve of each figure over the steps

PUBLISHED: dict[str, tuple[float, ...]] = {
    # Mean of each epoch from the first one on, of the published pre-training: 4M data, 512 pairs per step.
    "contrastive": (2.352, 2.032, 1.949, 1.900, 1.857, 1.825, 1.797, 1.782),
    "itm": (0.451, 0.347, 0.316, 0.300, 0.288, 0.279, 0.271, 0.263),
    "mlm": (2.017, 1.364, 1.303, 1.265, 1.236, 1.214, 1.193, 1.176),
}
NOT_A_LOSS = re.compile(
    r"step|epoch|lr|temperature|grad_norm|samples|samples_per_second|loader_wait|.*_feat_std|queue_age|duplicate_negatives"
    r"|peak_memory_gb|loss_scale|accuracy"
)
RANKED = re.compile(r"val_(\w+)_r(\d+)")
DIRECTIONS = {"t2i": "Text to image", "i2t": "Image to text"}

Figure = tuple[str, str, tuple[tuple[str, str], ...]]  # title, note, (key, label) of each curve

OPTIMISATION: tuple[Figure, ...] = (
    ("Learning rate", "", (("lr", ""),)),
    ("Gradient norm", "before clipping", (("grad_norm", ""),)),
    ("Temperature", "of the contrast, learned", (("temperature", ""),)),
)
FEATURES: tuple[Figure, ...] = (
    ("Spread of the features", "1: all over, 0: collapsed", (("image_feat_std", "image"), ("text_feat_std", "text"))),
    ("Copies among the negatives", "share of the queue", (("duplicate_negatives", ""),)),
    ("Age of the queue", "steps", (("queue_age", ""),)),
)
SPEED: tuple[Figure, ...] = (
    ("Samples per second", "", (("samples_per_second", ""),)),
    ("Waiting for data", "share of the time", (("loader_wait", ""),)),
    ("Peak memory of the device", "GB", (("peak_memory_gb", ""),)),
)


def curves(records: Records) -> Series:
    """The figures of all records by name, in the order of the steps."""
    series: Series = {}
    for record in records:
        step = record.get("step")
        if is_figure(step):
            for key, value in record.items():
                if is_figure(value):
                    series.setdefault(key, []).append((step, value))
    return {key: sorted(points) for key, points in series.items()}


def loss_charts(training: Series, published: bool) -> str:
    """A chart for each loss, with the published one of the same name beside it where that is asked for."""
    step, epochs = training.get("epoch", [(0, 0.0)])[-1]
    compares = published and epochs >= 1 and training.keys() & PUBLISHED.keys()
    charts = []
    for key, points in training.items():
        if NOT_A_LOSS.fullmatch(key):
            continue
        lines = [Line("this run", points)]
        if compares and key in PUBLISHED:
            middles = [(number + 0.5) * step / epochs for number in range(len(PUBLISHED[key])) if number < epochs]
            lines.append(Line("published", list(zip(middles, PUBLISHED[key], strict=False)), reference=True))
        charts.append(chart(key, lines))
    note = "Grey: the published pre-training, mean of each epoch (4M data, 512 pairs per step)."
    return _grid(charts) + (f"<p>{note}</p>" if compares else "")


def validation_charts(validation: Series) -> str:
    """A chart for each figure of the validation; recalls of one direction share one."""
    ranked: dict[str, list[Line]] = {}
    single = []
    for key, points in validation.items():
        if match := RANKED.fullmatch(key):
            direction, rank = match.groups()
            ranked.setdefault(DIRECTIONS.get(direction, direction), []).append(Line(f"R@{rank}", points))
        elif key.startswith("val_"):
            title = "Mean recall" if key == "val_r_mean" else key[4:].replace("_", " ")
            single.append(chart(title, [Line(title, points)]))
    return _grid([chart(title, lines, "percent") for title, lines in ranked.items()] + single)


def figure_charts(training: Series, figures: Sequence[Figure]) -> str:
    """A chart for each of these figures that the run has."""
    return _grid(
        [
            chart(title, [Line(label, training.get(key, [])) for key, label in lines], note)
            for title, note, lines in figures
        ]
    )


def _grid(figures: Sequence[str]) -> str:
    content = "".join(figures)
    return f'<div class="grid">{content}</div>' if content else ""
