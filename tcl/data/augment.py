"""Training views of an image: the published augmentation, a mild one for data that must keep colour and side, or none.

All randomness comes from torch's global CPU generator, which the loader seeds for every sample.

RandAugment computes what the published code computes with OpenCV, quirks included: see `auto_contrast`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode, v2

from tcl.data.images import resize

AugmentName = Literal["published", "mild", "none"]
Transform = Callable[[Image.Image], torch.Tensor]
_ImageOp = Callable[[Image.Image], Image.Image]

# Magnitude 7 of 10 in the published scale of each operation.
ENHANCE = 0.7 * 1.8 + 0.1  # factor; 1 leaves the image as it is
SHEAR = 0.7 * 0.3  # pixels along one axis per pixel along the other
TRANSLATE = 7  # pixels, whatever the size of the image
ROTATE = 0.7 * 30  # degrees
FILL = 128


def build_transform(name: AugmentName, image_size: int, min_scale: float = 0.2) -> Transform:
    """Build the transform of one view.

    Args:
        name: `published` is the recipe of the paper. `mild` crops and brightens slightly and keeps colours and left and
            right, for captions that speak of them. `none` squashes the image to size, as evaluation does.
        image_size: side of the view in pixels.
        min_scale: smallest area of a published crop, as a fraction of the image; 0.2 in pre-training, 0.5 in
            fine-tuning.

    Returns:
        a function from an RGB image to pixels [3, image_size, image_size], uint8.
    """
    crop_to = {"size": image_size, "interpolation": InterpolationMode.BICUBIC}
    if name == "published":
        return _View(
            [
                v2.RandomResizedCrop(scale=(min_scale, 1.0), **crop_to),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                _maybe_blur,
                v2.RandomHorizontalFlip(),
                random_augment,
            ],
            image_size,
        )
    if name == "mild":
        return _View(
            [
                _CropKeepingShape(image_size),
                v2.ColorJitter(brightness=0.1, contrast=0.1),
            ],
            image_size,
        )
    return _View([], image_size)


class _View:
    """Image operations one after another, then pixels; a class, because loader workers may need to pickle it."""

    def __init__(self, operations: Sequence[_ImageOp], image_size: int) -> None:
        self.operations = operations
        self.size = (image_size, image_size)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        for operation in self.operations:
            image = operation(image)
        return torch.from_numpy(resize(image, self.size))  # copies only, where a crop has given the size already


class _CropKeepingShape:
    """Crop 80 to 100 % of the area, of nearly the image's own shape, then squash it to a square as evaluation does.

    A square crop of a wide image would never show its sides, which evaluation does show.
    """

    def __init__(self, image_size: int) -> None:
        self.size = (image_size, image_size)

    def __call__(self, image: Image.Image) -> Image.Image:
        area, stretch = _uniform(0.8, 1.0), math.exp(_uniform(-0.05, 0.05))
        width = image.width * min(math.sqrt(area * stretch), 1.0)
        height = image.height * min(math.sqrt(area / stretch), 1.0)
        left, top = _uniform(0.0, image.width - width), _uniform(0.0, image.height - height)
        return image.resize(self.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand(()).item()


def _maybe_blur(image: Image.Image) -> Image.Image:
    if _uniform() >= 0.5:
        return image
    return image.filter(ImageFilter.GaussianBlur(radius=_uniform(0.1, 2.0)))


def random_augment(image: Image.Image) -> Image.Image:
    """RandAugment as published: two operations drawn with replacement, each applied with probability one half."""
    for choice in torch.randint(len(OPERATIONS), (2,)).tolist():
        if _uniform() < 0.5:
            sign = 1 if _uniform() < 0.5 else -1
            image = OPERATIONS[choice](image, sign)
    return image


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
    return _warp(image, [[1, sign * SHEAR, 0], [0, 1, 0]])


def shear_y(image: Image.Image, sign: int) -> Image.Image:
    """Move each column up or down by `SHEAR` pixels per column."""
    return _warp(image, [[1, 0, 0], [sign * SHEAR, 1, 0]])


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
    return _warp(image, [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])


def _move(image: Image.Image, offset: tuple[int, int]) -> Image.Image:
    moved = Image.new("RGB", image.size, (FILL, FILL, FILL))
    moved.paste(image, offset)
    return moved


def _warp(image: Image.Image, matrix: Sequence[Sequence[float]]) -> Image.Image:
    """Map source to target coordinates (pixel centres are whole numbers) by an affine matrix [2, 3].

    Bilinear in steps of 1/32 pixel, with `FILL` beyond the edges: OpenCV's arithmetic.
    """
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    height, width = image.height, image.width
    columns, rows = np.arange(width), np.arange(height)[:, None]
    whole, fraction = [], []
    for a, b, c in inverse[:2]:
        steps = np.rint(a * columns * 1024).astype(np.int64) + np.rint((b * rows + c) * 1024).astype(np.int64) + 16
        whole.append(steps >> 10)
        fraction.append((steps >> 5) & 31)
    # Red, green and blue travel in one integer, 20 bits apart: products with weights up to 1024 do not meet.
    pixels = np.asarray(image).astype(np.int64)
    packed = np.full((height + 4, width + 4), FILL * (1 + (1 << 20) + (1 << 40)))  # framed: beyond it reads the frame
    packed[2:-2, 2:-2] = pixels[..., 0] | pixels[..., 1] << 20 | pixels[..., 2] << 40
    corner = (whole[1] + 2).clip(0, height + 2) * (width + 4) + (whole[0] + 2).clip(0, width + 2)
    top_left, top_right = packed.take(corner), packed.take(corner + 1)
    corner += width + 4
    bottom_left, bottom_right = packed.take(corner), packed.take(corner + 1)
    top = (top_left << 5) + (top_right - top_left) * fraction[0]
    bottom = (bottom_left << 5) + (bottom_right - bottom_left) * fraction[0]
    mixed = (top << 5) + (bottom - top) * fraction[1] + 512 * (1 + (1 << 20) + (1 << 40))
    return Image.fromarray(
        np.stack([mixed >> 10 & 255, mixed >> 30 & 255, mixed >> 50 & 255], axis=-1).astype(np.uint8)
    )


def _unsigned(operation: _ImageOp) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, _sign: operation(image)


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
