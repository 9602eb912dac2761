"""Views are uint8, seeded by torch, decoded once, and as near to the published transforms as they say.

What is drawn for them is in `test_views`.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tcl.data.images.augment import build_transform
from tcl.data.images.decode import ImageError, resize
from tcl.data.scenes.scenes import render


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


def test_the_fast_resize_is_that_of_pillow() -> None:
    """Edges move to whole pixels; no value is more than one grey level off."""
    image = render("scenes:val:0:5").resize((300, 200), Image.Resampling.BICUBIC)
    transform = build_transform("published", 96)
    view = np.asarray(transform.resize_crop(image, (10.4, 0.0, 290.0, 199.6), transform.size))
    expected = np.asarray(image.crop((10, 0, 290, 200)).resize((96, 96), Image.Resampling.BICUBIC))
    assert np.abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("crop", "pixel"), [((0.2, 0.1, 0.4, 0.3), (0, 0)), ((49.6, 36.7, 50.0, 37.0), (49, 36)), ((7, 9, 8, 10), (7, 9))]
)
def test_a_crop_of_less_than_a_pixel_shows_a_pixel(crop: tuple[float, ...], pixel: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8))
    transform = build_transform("published", 4)
    view = transform.resize_crop(image, crop, transform.size)  # type: ignore[arg-type]
    assert (np.asarray(view) == image.getpixel(pixel)).all()


@pytest.mark.parametrize("name", ["published", "mild", "none"])
def test_two_views_share_one_image_and_differ(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    render("scenes:val:0:5").resize((640, 480)).save(path)
    torch.manual_seed(0)
    first, second = build_transform(name, 64).views(str(path), 2)
    assert torch.equal(first, second) == (name == "none")
    with pytest.raises(ImageError, match="no such file"):
        build_transform(name, 64).views(str(tmp_path / "absent.jpg"), 2)
