"""What a built-in scene shows: its shapes, drawn at random, and where they stand."""

from __future__ import annotations

import random
from dataclasses import dataclass

COLOURS = {
    "red": (222, 40, 40),
    "orange": (244, 138, 22),
    "yellow": (238, 212, 28),
    "green": (38, 158, 70),
    "blue": (44, 92, 216),
    "purple": (132, 54, 168),
    "pink": (245, 132, 190),
    "black": (34, 34, 36),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
SMALL_RADIUS = 0.1
"""Half the width of a small shape, as a fraction of the side of the image."""

LARGE_RADIUS = {"single": 0.26, "row": 0.2, "column": 0.2, "row above": 0.18, "row below": 0.18}
"""The same of a large one: as large as the layout allows, since models learn from what fills the image."""

LARGE_RADIUS_OF_THREE = 0.14
"""The same, for three in a row or column."""

_HELD_OUT_SHAPES = ("square", "star", "circle", "cross", "triangle", "ring", "square", "circle")
HELD_OUT = frozenset(zip(COLOURS, _HELD_OUT_SHAPES, strict=True))
"""(colour, shape) pairs that the split `train` never shows."""

PLACES = {
    "in the top left corner": (0, 0),
    "at the top": (1, 0),
    "in the top right corner": (2, 0),
    "on the left": (0, 1),
    "in the center": (1, 1),
    "on the right": (2, 1),
    "in the bottom left corner": (0, 2),
    "at the bottom": (1, 2),
    "in the bottom right corner": (2, 2),
}
"""Where a single shape is, and that cell's (column, row) of a 3 x 3 grid."""

_EDGE = 0.02  # nearest that a shape comes to the edge of the image
_GAP = 0.045  # smallest distance between two shapes along the axis of their relation


@dataclass(frozen=True)
class Shape:
    """One shape; `x`, `y` (its centre, y downwards) and `radius` are fractions of the side of the image."""

    size: str
    colour: str
    kind: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0

    @property
    def name(self) -> str:
        """Size, colour and shape: `small red circle`."""
        return f"{self.size} {self.colour} {self.kind}"

    @property
    def short_name(self) -> str:
        """Colour and shape: `red circle`."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """What one image shows.

    Args:
        shapes: one to three shapes, of different (colour, kind), in reading order of the layout.
        layout: a key of `PLACES` for one shape; `row` (left to right) or `column` (top to bottom); `row above` or
            `row below` for three: the first two are left and right of each other, and both above or below the third.
        background: RGB.
    """

    shapes: tuple[Shape, ...]
    layout: str
    background: tuple[int, int, int]


def draw_scene(split: str, seed: int, index: int) -> Scene:
    """Scene `index` of a split and seed: the same one every time."""
    draw = random.Random(f"scene:{split}:{seed}:{index}")
    count = draw.choices((1, 2, 3), weights=(2, 5, 3))[0]
    shapes = [Shape(draw.choice(SIZES), colour, kind) for colour, kind in _draw_pairs(draw, split, count)]
    if count == 1:
        layout = draw.choice(tuple(PLACES))
    elif count == 2:
        layout = draw.choice(("row", "column"))
    else:
        layout = draw.choice(("row", "column", "row above", "row below"))
    level = draw.randint(240, 248)  # nearly the same everywhere, or it would tell images apart without their shapes
    return Scene(tuple(_arrange(draw, shapes, layout)), layout, (level, level, level))


def _draw_pairs(draw: random.Random, split: str, count: int) -> list[tuple[str, str]]:
    """Different (colour, shape) pairs that the split allows."""
    allowed = [(colour, kind) for colour in COLOURS for kind in SHAPES if (colour, kind) not in HELD_OUT]
    if split == "train":
        return draw.sample(allowed, count)
    pairs = draw.sample(allowed, count - 1)
    pairs.insert(draw.randrange(count), draw.choice(sorted(HELD_OUT)))
    return pairs


def _arrange(draw: random.Random, shapes: list[Shape], layout: str) -> list[Shape]:
    large = LARGE_RADIUS["single" if layout in PLACES else layout]
    if len(shapes) == 3 and layout in ("row", "column"):
        large = LARGE_RADIUS_OF_THREE
    radii = [(SMALL_RADIUS if shape.size == "small" else large) * draw.uniform(0.92, 1.0) for shape in shapes]
    if layout in PLACES:
        centres = [_in_cell(draw, PLACES[layout], radii[0])]
    elif layout == "row":
        centres = list(zip(_spread(draw, radii), _level(draw, radii), strict=True))
    elif layout == "column":
        centres = list(zip(_level(draw, radii), _spread(draw, radii), strict=True))
    else:
        centres = _row_and_one(draw, radii, row_above=layout == "row above")
    return [
        Shape(shape.size, shape.colour, shape.kind, x, y, radius)
        for shape, (x, y), radius in zip(shapes, centres, radii, strict=True)
    ]


def _in_cell(draw: random.Random, cell: tuple[int, int], radius: float) -> tuple[float, float]:
    """A centre in one cell of the 3 x 3 grid: near the edges of the image for outer cells, near the middle else."""

    def coordinate(position: int) -> float:
        offset = draw.uniform(0.0, 0.06)
        return (_EDGE + radius + offset, 0.47 + offset, 1 - _EDGE - radius - offset)[position]

    return coordinate(cell[0]), coordinate(cell[1])


def _spread(draw: random.Random, radii: list[float], start: float = _EDGE, stop: float = 1 - _EDGE) -> list[float]:
    """Increasing centres between `start` and `stop`, with `_GAP` or more between neighbours."""
    free = stop - start - 2 * sum(radii) - _GAP * (len(radii) - 1)
    cuts = sorted(draw.uniform(0.0, free) for _ in radii)
    centres = []
    taken = start
    for cut, radius in zip(cuts, radii, strict=True):
        centres.append(taken + cut + radius)
        taken += 2 * radius + _GAP
    return centres


def _level(draw: random.Random, radii: list[float]) -> list[float]:
    """Nearly equal centres, so that the other axis alone tells the relation."""
    inset = _EDGE + max(radii) + 0.03
    base = draw.uniform(inset, 1 - inset)
    return [base + draw.uniform(-0.03, 0.03) for _ in radii]


def _row_and_one(draw: random.Random, radii: list[float], row_above: bool) -> list[tuple[float, float]]:
    """Two shapes side by side, and the third below or above both, between their centres."""
    xs = _spread(draw, radii[:2])
    row = max(radii[:2])
    if row_above:
        row_y, third_y = _spread(draw, [row, radii[2]])
    else:
        third_y, row_y = _spread(draw, [radii[2], row])
    inset = _EDGE + radii[2]
    third_x = min(max(draw.uniform(*xs), inset), 1 - inset)  # a large shape above a small one at the edge stays inside
    return [(xs[0], row_y), (xs[1], row_y), (third_x, third_y)]
