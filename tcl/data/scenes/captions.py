"""The grammar of scene captions: several true ways of saying what a scene shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcl.data.scenes.layout import Scene


def scene_captions(scene: Scene) -> list[str]:
    """The specific caption, then three other ways of saying it."""
    names = [f"a {shape.name}" for shape in scene.shapes]
    short = [shape.short_name for shape in scene.shapes]
    a_short = [f"{'an' if shape.colour == 'orange' else 'a'} {shape.short_name}" for shape in scene.shapes]
    if len(names) == 1:
        place = scene.layout
        return [
            f"{names[0]} {place}",
            f"there is {names[0]} {place}",
            f"the only shape is {names[0]} {place}",
            f"a picture of {names[0]} {place}",
        ]
    if len(names) == 2:
        before, after, first, last = _words(scene.layout)
        return [
            f"{names[0]} {before} {names[1]}",
            f"{names[1]} {after} {names[0]}",
            f"there is {names[0]} {first} and {names[1]} {last}",
            f"two shapes with the {short[0]} {first} and the {short[1]} {last}",
        ]
    a, b, c = names
    if scene.layout in ("row", "column"):
        _, _, first, last = _words(scene.layout)
        order = "from left to right" if scene.layout == "row" else "from top to bottom"
        return [
            f"{a}, {b} and {c} {order}",
            f"{b} between {a} {first} and {c} {last}",
            f"three shapes {order}: {a}, {b} and {c}",
            f"{a_short[0]}, {a_short[1]} and {a_short[2]} {order}",
        ]
    above, below = ("above", "below") if scene.layout == "row above" else ("below", "above")
    return [
        f"{a} left of {b}, both {above} {c}",
        f"{c} {below} {a} and {b}",
        f"{b} right of {a}, both {above} {c}",
        f"{a_short[0]} left of {a_short[1]}, both {above} {a_short[2]}",
    ]


def _words(layout: str) -> tuple[str, str, str, str]:
    if layout == "row":
        return "left of", "right of", "on the left", "on the right"
    return "above", "below", "at the top", "at the bottom"
