"""RandAugment as published: what the published code computes with OpenCV, bit by bit, quirks included.

The draws come from torch's global CPU generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

_ImageOp = Callable[[Image.Image], Image.Image]
_Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]

# Magnitude 7 of 10 in the published scale of each operation.
ENHANCE = 0.7 * 1.8 + 0.1  # factor; 1 leaves the image as it is
SHEAR = 0.7 * 0.3  # pixels along one axis per pixel along the other
TRANSLATE = 7  # pixels, whatever the size of the image
ROTATE = 0.7 * 30  # degrees
FILL = 128


def draw_operations() -> list[_ImageOp]:
    """Two operations drawn with replacement, of which each stays with probability one half."""
    drawn: list[_ImageOp] = []
    for choice in torch.randint(len(OPERATIONS), (2,)).tolist():
        if torch.rand(()) < 0.5:
            drawn.append(partial(OPERATIONS[choice], sign=1 if torch.rand(()) < 0.5 else -1))
    return drawn


def auto_contrast(image: Image.Image) -> Image.Image:
    """Stretch each channel to 0..255, but turn a channel white whose minimum is above 0.

    Stretching was meant for every channel. In the published code the negated minimum wraps around in uint8, and since
    that changes what models were trained on, it is kept.
    """
    tables: list[int] = []
    for channel in image.split():
        low, high = cast("tuple[int, int]", channel.getextrema())
        if high <= low:
            tables.extend(range(256))
        elif low > 0:
            tables.extend([255] * 256)
        else:
            tables.extend(min(int(value * (255 / high)), 255) for value in range(256))
    return image.point(tables)


def brightness(image: Image.Image) -> Image.Image:
    """Multiply by `ENHANCE`."""
    return image.point([min(int(value * ENHANCE), 255) for value in range(256)] * 3)


def sharpness(image: Image.Image) -> Image.Image:
    """Move away from a smoothed image by `ENHANCE`; the border of one pixel stays."""
    pixels = np.asarray(image)
    result = pixels.copy()
    inner = (slice(1, -1), slice(1, -1))
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH)).astype(np.float32)[inner]
    sharp = smooth + np.float32(ENHANCE) * (pixels[inner] - smooth)
    result[inner] = sharp.clip(0, 255).astype(np.uint8)
    return Image.fromarray(result)


def shear_x(image: Image.Image, sign: int) -> Image.Image:
    """Move each row sideways by `SHEAR` pixels per row."""
    return _warp(image, ((1, sign * SHEAR, 0), (0, 1, 0)))


def shear_y(image: Image.Image, sign: int) -> Image.Image:
    """Move each column up or down by `SHEAR` pixels per column."""
    return _warp(image, ((1, 0, 0), (sign * SHEAR, 1, 0)))


def translate_x(image: Image.Image, sign: int) -> Image.Image:
    """Move sideways by `TRANSLATE` pixels."""
    return _move(image, (-sign * TRANSLATE, 0))


def translate_y(image: Image.Image, sign: int) -> Image.Image:
    """Move up or down by `TRANSLATE` pixels."""
    return _move(image, (0, -sign * TRANSLATE))


def rotate(image: Image.Image, sign: int) -> Image.Image:
    """Rotate about the centre by `ROTATE` degrees; positive is counter-clockwise."""
    cos, sin = math.cos(math.radians(ROTATE)), sign * math.sin(math.radians(ROTATE))
    x, y = image.width / 2, image.height / 2
    return _warp(image, ((cos, sin, (1 - cos) * x - sin * y), (-sin, cos, sin * x + (1 - cos) * y)))


def _move(image: Image.Image, offset: tuple[int, int]) -> Image.Image:
    moved = Image.new("RGB", image.size, (FILL, FILL, FILL))
    moved.paste(image, offset)
    return moved


class _Grid(NamedTuple):
    """Where the pixels of a warped image come from, in the framed image: top left neighbour, and 1/32 beyond it."""

    corner: np.ndarray  # [H, W], flat positions
    right: np.ndarray  # [H, W], 0 to 31
    down: np.ndarray  # [H, W], 0 to 31


@lru_cache(maxsize=16)  # the warps of RandAugment are six, and views have one size
def _grid(matrix: _Matrix, width: int, height: int) -> _Grid:
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    columns, rows = np.arange(width), np.arange(height)[:, None]
    whole, fraction = [], []
    for a, b, c in inverse[:2]:
        steps = np.rint(a * columns * 1024).astype(np.int64) + np.rint((b * rows + c) * 1024).astype(np.int64) + 16
        whole.append(steps >> 10)
        fraction.append((steps >> 5) & 31)
    corner = (whole[1] + 2).clip(0, height + 2) * (width + 4) + (whole[0] + 2).clip(0, width + 2)
    return _Grid(corner, *fraction)


def _warp(image: Image.Image, matrix: _Matrix) -> Image.Image:
    """Map source to target coordinates (pixel centres are whole numbers) by an affine matrix [2, 3].

    Bilinear in steps of 1/32 pixel, with `FILL` beyond the edges: OpenCV's arithmetic.
    """
    height, width = image.height, image.width
    grid = _grid(matrix, width, height)
    # Red, green and blue travel in one integer, 20 bits apart: products with weights up to 1024 do not meet.
    pixels = np.asarray(image).astype(np.int64)
    packed = np.full((height + 4, width + 4), FILL * (1 + (1 << 20) + (1 << 40)))  # framed: beyond it reads the frame
    packed[2:-2, 2:-2] = pixels[..., 0] | pixels[..., 1] << 20 | pixels[..., 2] << 40
    mixed = _mix(packed.ravel(), grid.corner, grid.right)
    mixed <<= 5
    if grid.down.any():
        mixed += (_mix(packed.ravel()[width + 4 :], grid.corner, grid.right) - (mixed >> 5)) * grid.down
    mixed += 512 * (1 + (1 << 20) + (1 << 40))
    mixed >>= 10
    return Image.fromarray(np.stack([mixed & 255, mixed >> 20 & 255, mixed >> 40 & 255], axis=-1).astype(np.uint8))


def _mix(packed: np.ndarray, corner: np.ndarray, right: np.ndarray) -> np.ndarray:
    """32 times the mixture of each pixel at `corner` with its right neighbour."""
    left = packed[corner]
    return (left << 5) + (packed[1:][corner] - left) * right


def _unsigned(operation: _ImageOp) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, sign: operation(image)


OPERATIONS: list[Callable[[Image.Image, int], Image.Image]] = [
    _unsigned(lambda image: image),
    _unsigned(auto_contrast),
    _unsigned(ImageOps.equalize),
    _unsigned(brightness),
    _unsigned(sharpness),
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
]
