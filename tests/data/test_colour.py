"""Colour operations equal torchvision's on Pillow images but for the grey levels they state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as pillow

from tcl.data import colour

GENERATOR = np.random.default_rng(0)
# Noise has every colour; a smooth image has the spectrum of a photograph.
NOISE = Image.fromarray(GENERATOR.integers(0, 256, (64, 48, 3), dtype=np.uint8))
SMOOTH = Image.fromarray(GENERATOR.integers(0, 256, (8, 6, 3), dtype=np.uint8)).resize((48, 64))
GREY = NOISE.convert("L").convert("RGB")

CHANGES = [
    (colour.change_brightness, pillow.adjust_brightness),
    (colour.change_contrast, pillow.adjust_contrast),
    (colour.change_saturation, pillow.adjust_saturation),
]


def differences(ours: Callable[[Tensor], Tensor], theirs: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Absolute differences on all images, in grey levels."""
    collected = []
    for image in (NOISE, SMOOTH, GREY):
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        result = ours(planes)
        assert torch.equal(result, result.round()) and result.min() >= 0 and result.max() <= 255
        collected.append(np.abs(result.permute(1, 2, 0).numpy() - np.asarray(theirs(image)).astype(int)))
    return np.concatenate(collected)


@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.4])
@pytest.mark.parametrize(("ours", "theirs"), CHANGES)
def test_brightness_contrast_saturation(ours: Callable, theirs: Callable, factor: float) -> None:
    difference = differences(lambda planes: ours(planes, factor), lambda image: theirs(image, factor))
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])
def test_hue(turn: float) -> None:
    difference = differences(
        lambda planes: colour.change_hue(planes, turn), lambda image: pillow.adjust_hue(image, turn)
    )
    assert difference.max() <= 6 and difference.mean() < 0.05


def test_grey() -> None:
    difference = differences(
        lambda planes: colour.grey(planes).expand_as(planes), lambda image: image.convert("L").convert("RGB")
    )
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 1.4, 2.0])
def test_blur(radius: float) -> None:
    difference = differences(
        lambda planes: colour.blur(planes, radius), lambda image: image.filter(ImageFilter.GaussianBlur(radius))
    ).reshape(3, 64, 48, 3)
    inner = difference[:, 6:-6, 6:-6]
    assert difference.mean() < 1 and inner.mean() < 0.7 and inner.max() <= 4


def test_blur_of_a_tiny_image() -> None:
    assert torch.equal(colour.blur(torch.full((3, 1, 2), 200.0), 2.0), torch.full((3, 1, 2), 200.0))
