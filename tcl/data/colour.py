"""Colours and sharpness of a view, on float planes [3, H, W] of red, green and blue, whole numbers from 0 to 255.

They do what torchvision does to a Pillow image, 8-bit rounding included, in a third of the time: equal but for single
grey levels. Only the blur, which Pillow rounds six times and this once, differs by up to half a level on average.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def grey(planes: Tensor) -> Tensor:
    """Luma [H, W]."""
    red, green, blue = planes
    return _round((red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114))


def change_brightness(planes: Tensor, factor: float) -> Tensor:
    """Multiply, in place."""
    return planes.mul_(factor).clamp_(0, 255).floor_()


def change_contrast(planes: Tensor, factor: float) -> Tensor:
    """Move away from the mean luma of the image, in place."""
    mean = _round(grey(planes).mean())
    return planes.sub_(mean).mul_(factor).add_(mean).clamp_(0, 255).floor_()


def change_saturation(planes: Tensor, factor: float) -> Tensor:
    """Move away from each pixel's luma, in place."""
    luma = grey(planes)
    return planes.sub_(luma).mul_(factor).add_(luma).clamp_(0, 255).floor_()


def change_hue(planes: Tensor, turn: float) -> Tensor:
    """Rotate the colour wheel by a part of a turn, -0.5 to 0.5, in HSV of 8 bits."""
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    span = high - torch.minimum(torch.minimum(red, green), blue)
    safe = span.clamp(min=1)  # of a grey pixel any hue will do
    hue = torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = torch.where(high == red, (green - blue) / safe, hue).div_(6)  # parts of a turn from red
    hue.sub_(hue.floor()).mul_(255).floor_().add_(int(turn * 255))
    hue.sub_((hue / 256).floor_().mul_(256)).mul_(6 / 255)  # 0 to 6
    span = (span * 255).div_(high.clamp(min=1)).floor_().mul_(high).div_(255)  # saturation has 8 bits, too
    rotated = torch.empty_like(planes)
    # Each channel rises and falls over four sixths of the wheel, red around 0, green around 2, blue around 4.
    torch.sub(hue, 3, out=rotated[0]).abs_().sub_(1)
    torch.sub(hue, 2, out=rotated[1]).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=rotated[2]).abs_().neg_().add_(2)
    return _round(rotated.clamp_(0, 1).mul_(span).add_(high - span))


def blur(planes: Tensor, radius: float) -> Tensor:
    """Pillow's Gaussian blur: three averages, along rows and columns; the outermost pixels repeat beyond the edge."""
    weights = _blur_weights(radius)
    reach = len(weights) // 2
    padded = F.pad(planes, (reach,) * 4, mode="replicate")
    return _round(_weigh(_weigh(padded, weights, dim=1), weights, dim=2))


def _weigh(padded: Tensor, weights: list[float], dim: int) -> Tensor:
    """Convolve along one dimension; far faster here than a convolution of two dimensions."""
    reach = len(weights) // 2
    size = padded.shape[dim] - 2 * reach
    result = padded.narrow(dim, reach, size) * weights[reach]
    for step in range(reach):
        for start in (step, 2 * reach - step):
            result.add_(padded.narrow(dim, start, size), alpha=weights[step])
    return result


def _blur_weights(radius: float) -> list[float]:
    """An average over a window whose ends count in part, three times in a row, with the variance of a Gaussian."""
    variance = radius * radius / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    width = 2 * (whole + part) + 1
    once = np.full(2 * whole + 3, 1 / width)
    once[0] = once[-1] = part / width
    return np.convolve(np.convolve(once, once), once).tolist()


def _round(values: Tensor) -> Tensor:
    """To the nearest whole number, in place; halves go up."""
    return values.add_(0.5).floor_()
