"""Training views of an image: the published augmentation, a mild one for data that must keep colour and side, or none.

All randomness comes from torch's global CPU generator, which the loader seeds for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from tcl.data.images.decode import Crop, Source, decode, decode_crops, resize
from tcl.data.images.randaugment import draw_operations

AugmentName = Literal["published", "whole", "mild", "none"]
_Operation = Callable[[Image.Image], Image.Image]


def build_transform(name: AugmentName, image_size: int | tuple[int, int], min_scale: float = 0.2) -> Transform:
    """Build the transform of views.

    Args:
        name: `published` is the recipe of the paper; `whole` is that of grounding, which leaves out crops and colours.
            `mild` crops and brightens slightly and keeps colours and left and right, for captions that speak of them.
            `none` squashes the image to size, as evaluation does.
        image_size: side of a view in pixels, or (height, width).
        min_scale: smallest area of a published crop, as a fraction of the image; 0.2 in pre-training, 0.5 in
            fine-tuning.
    """
    if name == "published":
        operations: list[_Operation] = [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([_blur], p=0.5),
            v2.RandomHorizontalFlip(),
            _random_augment,
        ]
        return Transform(image_size, _RandomCrop(min_scale), _resize_fast, operations)
    if name == "whole":
        return Transform(image_size, _no_crop, _resize_exactly, [v2.RandomHorizontalFlip(), _random_augment])
    if name == "mild":
        return Transform(image_size, _crop_keeping_shape, _resize_exactly, [v2.ColorJitter(0.1, 0.1)])
    return Transform(image_size, None, _resize_exactly, [])


class Transform:
    """Makes random views of an image: a crop, resized, then operations one after another.

    A class, because loader workers may need to pickle it. Without `crop`, every view is that of evaluation.

    Args:
        image_size: side of a view in pixels, or (height, width).
        crop: draws a crop of an image, given its width and height.
        resize_crop: cuts a crop out of an image and squashes it to a size.
        operations: what happens to it then.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        crop: Callable[[int, int], Crop] | None,
        resize_crop: Callable[[Image.Image, Crop, tuple[int, int]], Image.Image],
        operations: Sequence[_Operation],
    ) -> None:
        self.size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.crop = crop
        self.resize_crop = resize_crop
        self.operations = operations

    def __call__(self, source: Source) -> Tensor:
        """One view [3, H, W], uint8, of what `decode` reads."""
        return self.views(source, 1)[0]

    def views(self, source: Source, count: int) -> list[Tensor]:
        """Views [3, H, W], uint8, of one image, which is decoded once and no larger than they need.

        Raises:
            ImageError: the image cannot be read.
        """
        crop = self.crop
        if crop is None:
            return [torch.from_numpy(resize(decode(source), self.size))] * count
        # All crops are drawn before the operations of any view: they decide how large the image is decoded.
        image, crops = decode_crops(source, lambda *shape: [crop(*shape) for _ in range(count)], self.size)
        return [self._view(image, crop) for crop in crops]

    def _view(self, image: Image.Image, crop: Crop) -> Tensor:
        view = self.resize_crop(image, crop, self.size)
        for operation in self.operations:
            view = operation(view)
        return _to_pixels(view).contiguous()


class _RandomCrop:
    """The published crop: an area from `min_scale` up, between 3:4 and 4:3 wide."""

    def __init__(self, min_scale: float) -> None:
        self.draw = v2.RandomResizedCrop(1, scale=(min_scale, 1.0))  # of which only the crop is used, not the resize

    def __call__(self, width: int, height: int) -> Crop:
        drawn = self.draw.make_params([torch.empty(3, height, width, device="meta")])
        left, top = drawn["left"], drawn["top"]
        return left, top, left + drawn["width"], top + drawn["height"]


def _no_crop(width: int, height: int) -> Crop:
    return 0, 0, width, height


def _crop_keeping_shape(width: int, height: int) -> Crop:
    """80 to 100 % of the area, of nearly the image's own shape, to be squashed to a square as evaluation does.

    A square crop of a wide image would never show its sides, which evaluation does show.
    """
    area, stretch = _uniform(0.8, 1.0), math.exp(_uniform(-0.05, 0.05))
    wide = width * min(math.sqrt(area * stretch), 1.0)
    high = height * min(math.sqrt(area / stretch), 1.0)
    left, top = _uniform(0.0, width - wide), _uniform(0.0, height - high)
    return left, top, left + wide, top + high


def _resize_exactly(image: Image.Image, crop: Crop, size: tuple[int, int]) -> Image.Image:
    """Bicubic, as Pillow does it; edges may lie between pixels."""
    return image.resize(size[::-1], Image.Resampling.BICUBIC, box=crop)


def _resize_fast(image: Image.Image, crop: Crop, size: tuple[int, int]) -> Image.Image:
    """Bicubic, a grey level from Pillow's at most, in a fraction of its time; edges are moved to whole pixels."""
    left, top = (min(round(edge), side - 1) for edge, side in zip(crop[:2], image.size, strict=True))
    right, bottom = max(round(crop[2]), left + 1), max(round(crop[3]), top + 1)
    pixels = _to_pixels(image.crop((left, top, right, bottom)))
    resized = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    return Image.fromarray(resized.permute(1, 2, 0).numpy())


def _to_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(_uniform(0.1, 2.0)))


def _random_augment(image: Image.Image) -> Image.Image:
    for operation in draw_operations():
        image = operation(image)
    return image
