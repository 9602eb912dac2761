"""The picture of `tcl bench`: throughput against batch size, one panel for images and one for texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tcl.errors import UsageError
from tcl.files.atomic import shared_file
from tcl.report.charts import format_figure

WIDTH, HEIGHT = 620, 420  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 64, 58  # margins for the numbers at the axes
LABEL, TITLE = 15, 20
KEY_HEIGHT = 24
INK, FAINT, GRID, PAPER = (24, 24, 28), (110, 110, 116), (226, 226, 230), (255, 255, 255)
# Distinguishable without red and green; more curves than these begin anew, with hollow dots.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (166, 118, 29), (60, 60, 60))
TITLES = {"image": "images per second", "text": "sentences per second"}


def draw_chart(record: Mapping[str, Any]) -> Image.Image:
    """Both panels side by side, and the key below them."""
    lines = [
        (f"{each['backend']}-{each['device']} {each['precision']}", each["throughput"]) for each in record["results"]
    ]
    lines = [(name, points) for name, points in lines if points]
    columns = 2
    key_rows = math.ceil(len(lines) / columns)
    figure = Image.new("RGB", (2 * WIDTH, HEIGHT + key_rows * KEY_HEIGHT + 20), PAPER)
    draw = ImageDraw.Draw(figure)
    for number, kind in enumerate(TITLES):
        curves = [[point for point in points if point["kind"] == kind] for _, points in lines]
        _panel(draw, number * WIDTH, TITLES[kind], curves)
    for number, (name, _) in enumerate(lines):
        x = LEFT + number % columns * WIDTH
        y = HEIGHT + 10 + number // columns * KEY_HEIGHT
        draw.line([(x, y), (x + 28, y)], COLOURS[number % len(COLOURS)], 3)
        _dot(draw, x + 14, y, number)
        draw.text((x + 40, y), name, INK, _font(LABEL), anchor="lm")
    return figure


def write_chart(path: Path, record: Mapping[str, Any]) -> None:
    """Draw and save, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with shared_file(path) as temporary:
            draw_chart(record).save(temporary, "PNG")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written: {error.strerror or error}", hint="choose another --plot"
        ) from error


def _panel(draw: ImageDraw.ImageDraw, left: int, title: str, curves: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    points = [point for curve in curves for point in curve]
    draw.text((left + LEFT, TOP - 30), title, INK, _font(TITLE), anchor="lm")
    if not points:
        return
    batches = sorted({int(point["batch"]) for point in points})
    highest = max(float(point["high"]) for point in points)
    step = _round_step(highest / 5)
    top = step * math.ceil(highest / step)
    low, high = math.log(batches[0]), math.log(batches[-1])

    def x(batch: float) -> float:
        share = (math.log(batch) - low) / (high - low) if high > low else 0.5
        return left + LEFT + 12 + share * (WIDTH - LEFT - RIGHT - 24)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    for number in range(round(top / step) + 1):
        draw.line([(left + LEFT, y(number * step)), (left + WIDTH - RIGHT, y(number * step))], GRID)
        draw.text((left + LEFT - 8, y(number * step)), format_figure(number * step), FAINT, _font(LABEL), anchor="rm")
    for batch in batches:
        draw.text((x(batch), HEIGHT - BOTTOM + 14), str(batch), FAINT, _font(LABEL), anchor="mm")
    draw.text((left + WIDTH - RIGHT, HEIGHT - BOTTOM + 36), "at once", FAINT, _font(LABEL), anchor="rm")
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x(point["batch"]), y(point["median"])) for point in curve]
        if len(places) > 1:
            draw.line(places, colour, 3, joint="curve")
        for point, (across, down) in zip(curve, places, strict=True):
            draw.line([(across, y(point["low"])), (across, y(point["high"]))], colour, 2)
            _dot(draw, across, down, number)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    filled = number < len(COLOURS)
    draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour if filled else PAPER, outline=colour, width=2)


def _round_step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-9)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
