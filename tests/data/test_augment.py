"""RandAugment equals the recorded operations of the published code, bit by bit; views are uint8 and seeded by torch."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from tcl.data import augment
from tcl.data.augment import OPERATIONS, build_transform, random_augment
from tcl.data.images import resize
from tcl.data.scenes import render

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = load_file(GOLDEN / "augment.safetensors")
FACTS = json.loads((GOLDEN / "augment.json").read_text(encoding="utf-8"))
IMAGE = Image.fromarray(RECORDED["aug/image"])

SIGNED = {
    "ShearX": augment.shear_x,
    "ShearY": augment.shear_y,
    "TranslateX": augment.translate_x,
    "TranslateY": augment.translate_y,
    "Rotate": augment.rotate,
}
UNSIGNED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "Identity": lambda image: image,
    "AutoContrast": augment.auto_contrast,
    "Equalize": ImageOps.equalize,
    "Brightness": augment.brightness,
    "Sharpness": augment.sharpness,
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
    values = np.stack([np.arange(0, 160, 10), np.arange(30, 190, 10), np.full(16, 77)], axis=-1).astype(np.uint8)
    result = np.asarray(augment.auto_contrast(Image.fromarray(values[None])))[0]
    assert result[:, 0].tolist() == [int(v * 255 / 150) for v in range(0, 160, 10)]
    assert (result[:, 1] == 255).all() and (result[:, 2] == 77).all()


def test_warps_fill_with_grey_and_move_as_far_as_they_say() -> None:
    white = Image.new("RGB", (40, 30), "white")
    moved = np.asarray(augment.translate_x(white, 1))
    assert (moved[:, -7:] == 128).all() and (moved[:, :-7] == 255).all()
    for operation in SIGNED.values():
        for sign in (1, -1):
            corners = np.asarray(operation(white, sign))[[0, 0, -1, -1], [0, -1, 0, -1]]
            assert (corners == 128).any() and np.asarray(operation(white, sign))[15, 20].min() == 255


def test_randaugment_draws_every_operation() -> None:
    torch.manual_seed(0)
    results = {random_augment(IMAGE).tobytes() for _ in range(300)}
    assert {apply(name, IMAGE, sign).tobytes() for name in {*SIGNED, *UNSIGNED} for sign in (1, -1)} <= results
    assert len(OPERATIONS) == len(SIGNED) + len(UNSIGNED)


@pytest.mark.parametrize("name", ["published", "mild", "none"])
@pytest.mark.parametrize("size", [(50, 37), (1, 90), (64, 64)])
def test_views(name: str, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    transform = pickle.loads(pickle.dumps(build_transform(name, 32)))
    before = np.asarray(image).copy()
    torch.manual_seed(1)
    views = [transform(image) for _ in range(12)]
    assert {(view.dtype, tuple(view.shape)) for view in views} == {(torch.uint8, (3, 32, 32))}
    torch.manual_seed(1)
    assert all(torch.equal(view, transform(image)) for view in views)
    assert np.array_equal(np.asarray(image), before)
    assert (len({view.numpy().tobytes() for view in views}) == 1) == (name == "none")


def test_none_is_the_evaluation_transform() -> None:
    image = render("scenes:val:0:2")
    assert np.array_equal(build_transform("none", 64)(image).numpy(), resize(image, (64, 64)))


def test_mild_keeps_colour_and_side() -> None:
    """Red stays left of blue, and each stays the strongest channel of its half."""
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    image.paste((40, 40, 200), (32, 0, 64, 64))
    torch.manual_seed(0)
    transform = build_transform("mild", 32)
    for _ in range(30):
        view = transform(image)
        assert (view[:, :, 4].float().mean(1).argmax(), view[:, :, -5].float().mean(1).argmax()) == (0, 2)
        assert abs(int(view[0, 16, 4]) - 200) < 60


def test_mild_shows_nearly_the_whole_of_a_wide_image() -> None:
    ramp = Image.fromarray(np.arange(200, dtype=np.uint8)[None, :, None].repeat(50, 0).repeat(3, 2))
    torch.manual_seed(0)
    transform = build_transform("mild", 32)
    spans = [int(view[0].max()) - int(view[0].min()) for view in (transform(ramp) for _ in range(40))]
    # The sides are 89 to 100 % of the image's, and brightness and contrast change the span by at most a fifth.
    assert min(spans) > 0.6 * 200 and np.mean(spans) > 0.85 * 200


def test_min_scale_bounds_the_crop() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(256, 0).repeat(3, 2))

    def widths(min_scale: float) -> list[int]:
        torch.manual_seed(0)
        crop = build_transform("published", 32, min_scale).operations[0]
        return [int(np.ptp(np.asarray(crop(ramp)).astype(int))) for _ in range(60)]

    assert min(widths(0.2)) < 150 < min(widths(0.5))
