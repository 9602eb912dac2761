"""Boxes `[x, y, width, height]` in pixels, and what a heat map says about them; the published rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

AREA_EXPONENT = 0.5
"""A box is scored by its sum over its area to this power: the sum alone prefers large boxes, the mean small ones."""

IOU_HIT = 0.5
"""A predicted box with at least this overlap is right."""


class Peak(NamedTuple):
    """The highest point of a heat map, in pixels of the image (centre of its cell)."""

    x: float
    y: float


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union as published: the intersection counts both of its border pixels.

    Boxes that share a single row or column of pixels do not overlap.
    """
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[0] + a[2], b[0] + b[2]) - 1, min(a[1] + a[3], b[1] + b[3]) - 1
    if left >= right or top >= bottom:
        return 0.0
    shared = (right - left + 1) * (bottom - top + 1)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def best_box(heat: NDArray[np.floating], boxes: Sequence[Sequence[float]]) -> int:
    """The box that holds most of a heat map: largest sum inside over the root of its area.

    Args:
        heat: at the size of the image [height, width].
        boxes: at least one, of positive area; their edges are cut to whole pixels, as published.
    """
    scores = []
    for x, y, width, height in boxes:
        rows, columns = slice(max(int(y), 0), max(int(y + height), 0)), slice(max(int(x), 0), max(int(x + width), 0))
        scores.append(float(heat[rows, columns].sum()) / (width * height) ** AREA_EXPONENT)
    return int(np.argmax(scores))


def peak(heat: NDArray[np.floating], size: tuple[int, int]) -> Peak:
    """The highest point of a heat map [rows, columns] laid over an image of `size` (height, width)."""
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return Peak((int(column) + 0.5) * size[1] / heat.shape[1], (int(row) + 0.5) * size[0] / heat.shape[0])


def contains(box: Sequence[float], point: Peak) -> bool:
    """Does the point lie in the box, its border included?"""
    return box[0] <= point.x <= box[0] + box[2] and box[1] <= point.y <= box[1] + box[3]


def region_box(heat: NDArray[np.floating], size: tuple[int, int], threshold: float = 0.5) -> Box:
    """The box around a heat map's peak: the connected region of values of at least a share of the highest.

    Args:
        heat: [rows, columns], finite.
        size: (height, width) of the image that it lies over.
        threshold: the share.

    Returns:
        in pixels of the image; all of the image when the map is flat.
    """
    above = heat >= threshold * heat.max()
    region = np.zeros_like(above)
    region[np.unravel_index(int(heat.argmax()), heat.shape)] = True
    while True:  # grows by one cell a round
        grown = region.copy()
        grown[1:] |= region[:-1]
        grown[:-1] |= region[1:]
        grown[:, 1:] |= region[:, :-1]
        grown[:, :-1] |= region[:, 1:]
        grown &= above
        if (grown == region).all():
            break
        region = grown
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    height, width = size[0] / heat.shape[0], size[1] / heat.shape[1]
    left, top = columns[0] * width, rows[0] * height
    return (
        float(left),
        float(top),
        float((columns[-1] + 1) * width - left),
        float((rows[-1] + 1) * height - top),
    )


def usable(box: object) -> bool:
    """Is this a box: four finite numbers, of which the last two are positive?"""
    return (
        isinstance(box, list | tuple)
        and len(box) == 4
        and all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in box
        )
        and box[2] > 0
        and box[3] > 0
    )


def inside_share(box: Sequence[float], size: tuple[int, int]) -> float:
    """How much of a box of positive area lies inside an image of `size` (height, width)."""
    width = min(box[0] + box[2], size[1]) - max(box[0], 0)
    height = min(box[1] + box[3], size[0]) - max(box[1], 0)
    return max(width, 0) * max(height, 0) / (box[2] * box[3])
