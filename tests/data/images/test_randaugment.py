"""RandAugment equals the recorded operations of the published code, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from tcl.data.images import randaugment
from tcl.data.images.randaugment import OPERATIONS, draw_operations
from tests.chance import follows

GOLDEN = Path(__file__).parents[2] / "golden"
RECORDED = load_file(GOLDEN / "augment.safetensors")
FACTS = json.loads((GOLDEN / "augment.json").read_text(encoding="utf-8"))
IMAGE = Image.fromarray(RECORDED["aug/image"])

SIGNED = {
    "ShearX": randaugment.shear_x,
    "ShearY": randaugment.shear_y,
    "TranslateX": randaugment.translate_x,
    "TranslateY": randaugment.translate_y,
    "Rotate": randaugment.rotate,
}
UNSIGNED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "Identity": lambda image: image,
    "AutoContrast": randaugment.auto_contrast,
    "Equalize": ImageOps.equalize,
    "Brightness": randaugment.brightness,
    "Sharpness": randaugment.sharpness,
}


def apply(name: str, image: Image.Image, sign: int) -> Image.Image:
    return SIGNED[name](image, sign) if name in SIGNED else UNSIGNED[name](image)


@pytest.mark.parametrize("case", [case for case in FACTS["ops"] if case.split("_")[0] in {*SIGNED, *UNSIGNED}])
def test_operations_equal_the_recorded_ones(case: str) -> None:
    """Tolerance zero: also the warps, whose recorded values come from OpenCV's fixed-point arithmetic."""
    magnitude = FACTS["ops"][case][:1]
    result = apply(case.split("_")[0], IMAGE, -1 if magnitude and magnitude[0] < 0 else 1)
    assert np.array_equal(np.asarray(result), RECORDED[f"aug/{case}"])


@pytest.mark.parametrize("seed", range(4))
def test_whole_randaugment_equals_the_recorded_one(seed: int) -> None:
    names = FACTS["facts"]["pretrain"]["pretrain_dataset"][0]["args"][0][5]["augs"]
    draw = np.random.RandomState(seed)
    result = IMAGE
    for name in draw.choice(names, 2):
        if draw.random_sample() > FACTS["facts"]["randaugment"]["probability_each_op"]:
            continue
        negative = False
        if name in SIGNED:
            coin = draw.random_sample()
            negative = coin < 0.5 if name == "Rotate" else coin > 0.5
        result = apply(name, result, -1 if negative else 1)
    assert np.array_equal(np.asarray(result), RECORDED[f"randaugment/seed{seed}"])


def test_auto_contrast_keeps_the_published_quirk() -> None:
    values = np.stack([np.arange(151), np.arange(1, 152), np.full(151, 77)], axis=-1).astype(np.uint8)
    result = np.asarray(randaugment.auto_contrast(Image.fromarray(values[None])))[0]
    assert result[:, 0].tolist() == [int(value * (255 / 150)) for value in range(151)]
    assert (result[:, 1] == 255).all() and (result[:, 2] == 77).all()


def test_sharpness_ends_at_black_and_white() -> None:
    pixels = 255 * np.random.default_rng(0).integers(0, 2, (16, 16, 3), dtype=np.uint8)
    result = np.asarray(randaugment.sharpness(Image.fromarray(pixels)))
    assert {0, 255} <= set(result[1:-1, 1:-1].flat)
    assert ((result == 0) == (pixels == 0)).all() and ((result == 255) == (pixels == 255)).all()


def test_warps_fill_with_grey_and_move_as_far_as_they_say() -> None:
    white = Image.new("RGB", (40, 30), "white")
    moved = np.asarray(randaugment.translate_x(white, 1))
    assert (moved[:, -7:] == 128).all() and (moved[:, :-7] == 255).all()
    for operation in SIGNED.values():
        for sign in (1, -1):
            corners = np.asarray(operation(white, sign))[[0, 0, -1, -1], [0, -1, 0, -1]]
            assert (corners == 128).any() and np.asarray(operation(white, sign))[15, 20].min() == 255


def test_randaugment_draws_every_operation() -> None:
    torch.manual_seed(0)
    results = {
        reduce(lambda image, operation: operation(image), draw_operations(), IMAGE).tobytes() for _ in range(300)
    }
    assert {apply(name, IMAGE, sign).tobytes() for name in {*SIGNED, *UNSIGNED} for sign in (1, -1)} <= results
    assert len(OPERATIONS) == len(SIGNED) + len(UNSIGNED)


def test_operations_are_drawn_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of ten with replacement, each kept by one half, each sign as likely as the other."""
    assert (FACTS["facts"]["randaugment"]["N"], FACTS["facts"]["randaugment"]["probability_each_op"]) == (2, 0.5)
    applied: list[tuple[int, int]] = []

    def listen(number: int) -> Callable[[Image.Image, int], Image.Image]:
        def operation(image: Image.Image, sign: int) -> Image.Image:
            applied.append((number, sign))
            return image

        return operation

    monkeypatch.setattr(randaugment, "OPERATIONS", [listen(number) for number in range(len(OPERATIONS))])
    torch.manual_seed(0)
    drawn = []
    for _ in range(5000):
        applied.clear()
        for operation in draw_operations():
            operation(IMAGE)
        drawn.append(list(applied))
    assert follows(torch.tensor([len(of_view) for of_view in drawn]).bincount(minlength=3), torch.tensor([1, 2, 1]))
    kinds = torch.tensor([2 * number + (sign > 0) for of_view in drawn for number, sign in of_view])
    assert {sign for of_view in drawn for _, sign in of_view} == {-1, 1}
    assert follows(kinds.bincount(minlength=20), torch.ones(20))
    pairs = torch.tensor([10 * of_view[0][0] + of_view[1][0] for of_view in drawn if len(of_view) == 2])
    assert follows(pairs.bincount(minlength=100), torch.ones(100))
