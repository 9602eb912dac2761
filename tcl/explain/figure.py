"""The figure of `tcl explain`: the image, a heat map of the caption, and one of each word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tcl.data.boxes import Box

CELL_AREA = 240 * 240
"""Pixels of one picture of the figure, whatever the shape of the image."""

SHORT_SIDE, LONG_SIDE = 100, 576
"""Limits of its sides; an image that is longer and narrower than that is drawn less so."""

FIGURE_RATIO = 1.6
"""Width over height that the grid comes as near to as it can."""

MARGIN, GAP, LABEL_SIZE, TITLE_SIZE, NOTE_SIZE = 24, 14, 19, 23, 15
LINES = 6
INK, FAINT, PAPER = (24, 24, 28), (110, 110, 116), (255, 255, 255)

# From night blue over purple and red to pale yellow; lightness rises evenly, so grey prints and colour-blind eyes read
# the order too.
_ANCHORS = ((8, 6, 40), (66, 16, 106), (134, 32, 108), (198, 58, 78), (238, 112, 42), (250, 178, 46), (252, 248, 176))

# Looked for on the machine when a text has letters that Pillow's own font does not draw.
_WIDER_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "segoeui.ttf",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Panel:
    """One heat map of the figure.

    Args:
        label: below it.
        heat: [rows, columns], non-negative; each panel is scaled to its own maximum.
        box: drawn on it, in pixels of the image; None draws none.
    """

    label: str
    heat: NDArray[np.floating]
    box: Box | None


def colour(heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1] of any shape to RGB [..., 3]."""
    stops = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(heat, stops, [anchor[c] for anchor in _ANCHORS]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(image: Image.Image, heat: NDArray[np.floating], size: tuple[int, int]) -> Image.Image:
    """A heat map over a grey copy of the image, at a size (width, height); where it is hot it covers more."""
    fine = Image.fromarray(np.ascontiguousarray(heat, np.float32)).resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(fine).clip(0, None)
    values = values / values.max() if values.max() > 0 else values
    grey = np.asarray(image.convert("L").convert("RGB").resize(size, Image.Resampling.LANCZOS), np.float32)
    cover = (0.25 + 0.55 * values)[..., None]
    return Image.fromarray((grey * (1 - cover) + colour(values) * cover).round().astype(np.uint8))


def draw_figure(image: Image.Image, title: str, note: str, panels: Sequence[Panel]) -> Image.Image:
    """Lay out the image and its heat maps in a grid under a title.

    Args:
        image: RGB.
        title: the caption, wrapped to the width of the figure.
        note: one faint line below the title.
        panels: in reading order, behind the image itself.
    """
    width, height = _cell(image)
    label_height = LABEL_SIZE + 12
    columns = _columns(len(panels) + 1, width + GAP, height + label_height + GAP)
    rows = math.ceil((len(panels) + 1) / columns)
    inner = max(columns * (width + GAP) - GAP, 360)
    lines = wrap(title, _font_for(title, TITLE_SIZE), inner)
    notes = wrap(note, _font_for(note, NOTE_SIZE), inner)
    head = len(lines) * (TITLE_SIZE + 8) + len(notes) * (NOTE_SIZE + 6) + GAP
    figure = Image.new(
        "RGB", (inner + 2 * MARGIN, head + rows * (height + label_height + GAP) - GAP + 2 * MARGIN), PAPER
    )
    draw = ImageDraw.Draw(figure)
    y = MARGIN
    for line in lines:
        draw.text((MARGIN, y), line, INK, _font_for(line, TITLE_SIZE))
        y += TITLE_SIZE + 8
    for line in notes:
        draw.text((MARGIN, y), line, FAINT, _font_for(line, NOTE_SIZE))
        y += NOTE_SIZE + 6
    plain = Panel("image", np.zeros((1, 1)), None)
    for number, panel in enumerate((plain, *panels)):
        left = MARGIN + number % columns * (width + GAP)
        top = MARGIN + head + number // columns * (height + label_height + GAP)
        if panel is plain:
            figure.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        else:
            figure.paste(overlay(image, panel.heat, (width, height)), (left, top))
            if panel.box:
                _outline(draw, panel.box, (left, top), (width / image.width, height / image.height))
        font = _font_for(panel.label, LABEL_SIZE)
        text = shorten(panel.label, font, width)
        start = left + (width - font.getlength(text)) / 2
        draw.text((start, top + height + 4), text, FAINT if panel is plain else INK, font)
    return figure


def _cell(image: Image.Image) -> tuple[int, int]:
    ratio = image.width / image.height
    sides = (math.sqrt(CELL_AREA * ratio), math.sqrt(CELL_AREA / ratio))
    width, height = (min(max(round(side), SHORT_SIDE), LONG_SIDE) for side in sides)
    return width, height


def _columns(panels: int, width: int, height: int) -> int:
    """As many that the grid comes near to `FIGURE_RATIO` and has few gaps."""

    def distance(columns: int) -> float:
        rows = math.ceil(panels / columns)
        empty = columns * rows - panels
        return abs(math.log(columns * width / (rows * height) / FIGURE_RATIO)) + 0.5 * empty / columns

    return min(range(1, panels + 1), key=distance)


def _outline(draw: ImageDraw.ImageDraw, box: Box, corner: tuple[int, int], scale: tuple[float, float]) -> None:
    x, y = corner[0] + box[0] * scale[0], corner[1] + box[1] * scale[1]
    right, bottom = x + box[2] * scale[0] - 1, y + box[3] * scale[1] - 1
    draw.rectangle((x, y, right, bottom), outline=INK, width=3)
    draw.rectangle((x + 1, y + 1, right - 1, bottom - 1), outline=PAPER)


def wrap(text: str, font: Font, width: float) -> list[str]:
    """At most `LINES` lines of at most `width` pixels, broken between words; what is too long is shortened."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == LINES:
            lines[-1] = shorten(f"{lines[-1]} {word}", font, width)
            break
        else:
            lines.append(shorten(word, font, width))
    return lines


def shorten(text: str, font: Font, width: float) -> str:
    """The text, cut to `width` pixels, with three dots where it was cut."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the longest beginning that fits; a search, since a word may have millions of letters
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(f"{text[:middle]}...") <= width:
            low = middle
        else:
            high = middle - 1
    return f"{text[:low]}..."


@cache
def _open_font(name: str | None, size: int) -> Font | None:
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def _draws(name: str | None, letter: str) -> bool:
    """Does a font draw a letter, rather than the box it has for all it does not know?"""
    font = _open_font(name, NOTE_SIZE)
    return font is not None and bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


def _font_for(text: str, size: int) -> Font:
    """The font that draws most of a text; Pillow's own, which has the letters of English alone, if that draws all."""
    letters = {letter for letter in text[:500] if not letter.isspace()}
    best, most = ImageFont.load_default(size), -1
    for name in (None, *_WIDER_FONTS):
        font = _open_font(name, size)
        drawn = sum(_draws(name, letter) for letter in letters)
        if font is not None and drawn > most:
            best, most = font, drawn
        if most == len(letters):
            break
    return best
