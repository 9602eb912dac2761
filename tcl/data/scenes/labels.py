"""Labels of built-in scenes: statements that are true or false, and where each shape is.

A false statement is a caption of another scene, or one of the scene itself with one thing changed: a colour, a shape, a
size, or who is where. Of training scenes it speaks of their combinations alone, else one that no image shows would be
false by its words.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from tcl.data.boxes import Box
from tcl.data.scenes.captions import scene_captions
from tcl.data.scenes.layout import COLOURS, HELD_OUT, PLACES, SHAPES, SIZES, Scene, Shape
from tcl.data.scenes.scenes import IMAGE_SIZE, MOST_VAL_SCENES, PREFIX, scene

TRUE, FALSE = "true", "false"


class Statement(NamedTuple):
    """A sentence about a scene.

    Args:
        text: the sentence.
        label: `true` or `false`.
        contrast: how the false one of its pair was made: `other` scene, or one thing `changed`.
    """

    text: str
    label: str
    contrast: str


def scene_statements(reference: str) -> list[Statement]:
    """Two pairs of a true and a false statement about a scene, one of each contrast; a function of the reference."""
    drawn = scene(reference)
    draw = random.Random(f"statements:{reference}")
    change = draw.choice(("colour", "kind", "size", "place"))
    changed = _elsewhere(drawn, draw) if change == "place" else _otherwise(drawn, change, draw, reference)
    statements = []
    for contrast, false_scene in (("changed", changed), ("other", _another(drawn, draw, reference))):
        pairs = zip(scene_captions(drawn), scene_captions(false_scene), strict=True)
        true, false = draw.choice([pair for pair in pairs if pair[0] != pair[1]])  # not every wording names the sizes
        statements += [Statement(true, TRUE, contrast), Statement(false, FALSE, contrast)]
    return statements


def scene_regions(reference: str) -> list[tuple[str, Box]]:
    """Every shape of a scene as a text, and its box `[x, y, width, height]` in pixels of the image."""
    return [(f"a {shape.name}", shape_box(shape)) for shape in scene(reference).shapes]


def shape_box(shape: Shape) -> Box:
    """The square around a shape, in pixels of the image."""
    x, y, radius = (round(value * IMAGE_SIZE, 2) for value in (shape.x, shape.y, shape.radius))
    return round(x - radius, 2), round(y - radius, 2), 2 * radius, 2 * radius


def _otherwise(drawn: Scene, change: str, draw: random.Random, reference: str) -> Scene:
    """One shape of another colour, kind or size, so that the scene shows no such shape."""
    number = draw.randrange(len(drawn.shapes))
    shape = drawn.shapes[number]
    values = {"colour": COLOURS, "kind": SHAPES, "size": SIZES}[change]
    changes: list[dict[str, Any]] = [{change: value} for value in values if value != getattr(shape, change)]
    others = [replace(shape, **only) for only in changes]
    if change != "size":
        taken = {(other.colour, other.kind) for other in drawn.shapes}
        if reference.startswith(f"{PREFIX}train:"):
            taken |= HELD_OUT
        others = [other for other in others if (other.colour, other.kind) not in taken]
    shapes = (*drawn.shapes[:number], draw.choice(others), *drawn.shapes[number + 1 :])
    return replace(drawn, shapes=shapes)


def _another(drawn: Scene, draw: random.Random, reference: str) -> Scene:
    """A scene of the split that shares no pair of colour and kind with this one: no caption of it is true here."""
    split_and_seed = reference.rpartition(":")[0]
    own = {(shape.colour, shape.kind) for shape in drawn.shapes}
    while True:
        other = scene(f"{split_and_seed}:{draw.randrange(MOST_VAL_SCENES)}")
        if own.isdisjoint((shape.colour, shape.kind) for shape in other.shapes):
            return other


def _elsewhere(drawn: Scene, draw: random.Random) -> Scene:
    """A single shape in another place; of several the last in the place of another, which no caption leaves true."""
    if len(drawn.shapes) == 1:
        return replace(drawn, layout=draw.choice([place for place in PLACES if place != drawn.layout]))
    shapes = list(drawn.shapes)
    number = draw.randrange(len(shapes) - 1)
    shapes[number], shapes[-1] = shapes[-1], shapes[number]
    return replace(drawn, shapes=tuple(shapes))
