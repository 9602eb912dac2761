"""Built-in image-text pairs: rendered scenes of one to three coloured shapes.

Scene i of a (split, seed) is a pure function, so there are as many as anyone asks for and none is stored. One scene is
named `scenes:SPLIT:SEED:INDEX`; a set of them, as `--data` takes it, `scenes:SPLIT:COUNT:SEED`.

The eight pairs of `HELD_OUT` never appear in the split `train`; every scene of the split `val` shows at least one of
them, so validation asks for combinations that no training image contained, of colours and shapes that many did.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator

from PIL import Image, ImageDraw

from tcl.data.scenes.captions import scene_captions
from tcl.data.scenes.layout import COLOURS, Scene, Shape, draw_scene
from tcl.errors import UsageError

PREFIX = "scenes:"
IMAGE_SIZE = 96
"""Side of a rendered image in pixels."""

DEFAULT_COUNT = {"train": 8192, "val": 256}
MOST_VAL_SCENES = 100_000
"""No two validation scenes share their first caption, and there are about a million of those."""

_SUPERSAMPLING = 4


def scene(reference: str) -> Scene:
    """The scene that a reference names.

    Raises:
        UsageError: the reference is malformed.
    """
    return draw_scene(*_parse_reference(reference))


def describe(reference: str) -> list[str]:
    """Two to four true captions of a scene; the first one names every size, colour and shape and where they are."""
    split, seed, index = _parse_reference(reference)
    captions = scene_captions(draw_scene(split, seed, index))
    draw = random.Random(f"captions:{split}:{seed}:{index}")
    return [captions[0], *draw.sample(captions[1:], draw.randint(1, 3))]


def render(reference: str) -> Image.Image:
    """Draw a scene, anti-aliased, as an RGB image of `IMAGE_SIZE` x `IMAGE_SIZE` pixels."""
    drawn = scene(reference)
    image = Image.new("RGB", (IMAGE_SIZE * _SUPERSAMPLING,) * 2, drawn.background)
    canvas = ImageDraw.Draw(image)
    for shape in drawn.shapes:
        _draw(canvas, shape, image.width, drawn.background)
    return image.reduce(_SUPERSAMPLING)


def scene_rows(spec: str) -> Iterator[tuple[str, list[str]]]:
    """References and captions of a set of scenes.

    In the split `val` a scene whose first caption has been given to an earlier one of the set is passed over, so its
    indices may have gaps: no two rows share their first caption.

    Args:
        spec: `scenes:`, `scenes:train`, `scenes:val:256` or `scenes:val:256:7` (split, count, seed); by default 8192
            training scenes or 256 validation scenes of seed 0.

    Raises:
        UsageError: the specification is malformed.
    """
    split, count, seed = _parse_spec(spec)
    return _rows(split, count, seed)


def _rows(split: str, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    seen: set[str] = set()
    index = rows = 0
    while rows < count:
        reference = f"{PREFIX}{split}:{seed}:{index}"
        captions = describe(reference)
        index += 1
        if split == "val":
            if captions[0] in seen:
                continue
            seen.add(captions[0])
        rows += 1
        yield reference, captions


def _parse_spec(spec: str) -> tuple[str, int, int]:
    match = re.fullmatch(r"scenes:(?:(train|val)(?::([1-9][0-9]{0,8})(?::([0-9]{1,9}))?)?)?", spec)
    if match is None:
        raise UsageError(
            f"not a set of scenes: {spec}",
            hint="write scenes:SPLIT:COUNT:SEED, for example scenes:train:8192 or scenes:val:256:7 (SPLIT: train, val)",
        )
    split = match[1] or "train"
    count = int(match[2] or DEFAULT_COUNT[split])
    if split == "val" and count > MOST_VAL_SCENES:
        raise UsageError(
            f"{spec}: at most {MOST_VAL_SCENES} validation scenes differ enough",
            hint="ask for fewer, or for scenes:train",
        )
    return split, count, int(match[3] or 0)


def _parse_reference(reference: str) -> tuple[str, int, int]:
    match = re.fullmatch(r"scenes:(train|val):([0-9]{1,9}):([0-9]{1,12})", reference)
    if match is None:
        raise UsageError(f"not a scene: {reference}", hint="write scenes:SPLIT:SEED:INDEX, for example scenes:val:0:17")
    return match[1], int(match[2]), int(match[3])


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape, side: int, background: tuple[int, int, int]) -> None:
    x, y, r = shape.x * side, shape.y * side, shape.radius * side
    colour = COLOURS[shape.colour]
    if shape.kind in ("circle", "ring"):
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        if shape.kind == "ring":
            hole = 0.55 * r
            canvas.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
        return
    canvas.polygon([(x + dx * r, y + dy * r) for dx, dy in _OUTLINES[shape.kind]], fill=colour)


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius = 1.0 if i % 2 == 0 else 0.42
        angle = math.pi * (i / 5 - 0.5)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


_ARM = 0.34  # half the width of an arm of the cross
_OUTLINES = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
"""Corners relative to the centre, in units of the radius, y downwards."""
