"""What is drawn for a view: crop, colours, side and RandAugment, each as often and as strongly as published.

Operations are replaced by listeners that leave the image as it is, on a small ramp that shows where and which way round
a view is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from tcl.config.recipe import load_recipe
from tcl.data.images import randaugment
from tcl.data.images.augment import build_transform
from tcl.machine.seeding import seeded
from tests.chance import follows, follows_curve, is_rate, is_uniform

FACTS = json.loads((Path(__file__).parents[2] / "golden/augment.json").read_text(encoding="utf-8"))["facts"]
SIDE = 64
RAMP = Image.fromarray(np.arange(0, 256, 256 // SIDE, dtype=np.uint8)[None, :, None].repeat(SIDE, 0).repeat(3, 2))
CHANGES = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
GREY = "rgb_to_grayscale"


class Event(NamedTuple):
    """An operation of a view, what it was given, and whether the image was flipped by then."""

    name: str
    values: tuple[float, ...]
    flipped: bool


class View(NamedTuple):
    """The operations of a view in their order, and whether it is flipped."""

    events: list[Event]
    flipped: bool

    def of(self, *names: str) -> list[Event]:
        return [event for event in self.events if event.name in names]


def rises(view: Image.Image) -> bool:
    """Does a view get brighter to the right, as the ramp does?"""
    row = np.asarray(view)[0, :, 0]
    return bool(row[0] < row[-1])


def listeners(events: list[Event], patch: pytest.MonkeyPatch) -> None:
    """Put listeners in place of all operations but the flip."""
    call_kernel = v2.Transform._call_kernel

    def of_torchvision(self: Any, kernel: Callable[..., Any], view: Image.Image, **values: Any) -> Image.Image:
        if kernel.__name__ == "horizontal_flip":
            return call_kernel(self, kernel, view, **values)
        events.append(Event(kernel.__name__, tuple(values.values()), not rises(view)))
        return view

    def of_pillow(view: Image.Image, blur: ImageFilter.GaussianBlur) -> Image.Image:
        events.append(Event("blur", (blur.radius,), not rises(view)))
        return view

    def of_randaugment(number: int) -> Callable[[Image.Image, int], Image.Image]:
        def operation(view: Image.Image, sign: int) -> Image.Image:
            events.append(Event("randaugment", (number, sign), not rises(view)))
            return view

        return operation

    patch.setattr(v2.Transform, "_call_kernel", of_torchvision)
    patch.setattr(Image.Image, "filter", of_pillow)
    operations = [of_randaugment(number) for number in range(len(randaugment.OPERATIONS))]
    patch.setattr(randaugment, "OPERATIONS", operations)


@cache
def draw(name: str, count: int) -> list[View]:
    """Views of the ramp, two by two of one sample."""
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        listeners(events, patch)
        transform = build_transform(name, 8)  # type: ignore[arg-type]
        operations, made = transform.operations, []

        def note(view: Image.Image) -> Image.Image:
            made.append(View(list(events), not rises(view)))
            events.clear()
            return view

        transform.operations = [*operations, note]
        with seeded(0):
            for _ in range(count // 2):
                transform.views(RAMP, 2)
    return made


def recorded(job: str, name: str) -> list[dict[str, Any]]:
    """The training transforms of a job of the published code."""
    steps: list[dict[str, Any]] = FACTS[job][name][0]["args"][0]
    return steps


def test_published_views() -> None:
    """Each operation is as likely and as strong as in the recorded pipeline, whatever became of the others."""
    _, jitter, grey, blur, _, augmented, *_ = recorded("pretrain", "pretrain_dataset")
    strengths = jitter["args"][0][0]["args"]
    assert (strengths, augmented["N"]) == ([0.4, 0.4, 0.4, 0.1], 2)
    views = draw("published", 2000)

    changed = torch.tensor(
        [[bool(view.of(*CHANGES)), bool(view.of(GREY)), bool(view.of("blur")), view.flipped] for view in views]
    )
    kinds = (changed.long() * torch.tensor([8, 4, 2, 1])).sum(dim=1)
    shares = torch.ones(1)
    for rate in (jitter["kwargs"]["p"], grey["kwargs"]["p"], blur["kwargs"]["p"], 0.5):
        shares = torch.outer(shares, torch.tensor([1 - rate, rate])).flatten()
    assert follows(kinds.bincount(minlength=16), shares)
    stayed = torch.tensor([len(view.of("randaugment")) for view in views])
    assert follows((3 * changed[:, 3].long() + stayed).bincount(minlength=6), torch.tensor([1, 2, 1, 1, 2, 1]))

    drawn = [event for view in views for event in view.events]
    for name, strength in zip(CHANGES, strengths, strict=True):
        middle = 0 if name == "adjust_hue" else 1
        assert is_uniform([e.values[0] for e in drawn if e.name == name], middle - strength, middle + strength), name
    radii = [event.values[0] for event in drawn if event.name == "blur"]
    assert is_uniform(radii, *blur["args"][0][0]["sigma"]) and min(radii) < 0.12

    # One of the four factors says nothing about another.
    jitters = [{event.name: event.values[0] for event in view.of(*CHANGES)} for view in views]
    raised = [[jitter[name] > (name != "adjust_hue") for name in CHANGES] for jitter in jitters if jitter]
    kinds = (torch.tensor(raised).long() * torch.tensor([8, 4, 2, 1])).sum(dim=1)
    assert follows(kinds.bincount(minlength=16), torch.ones(16))


def test_published_views_have_their_operations_in_order() -> None:
    """Colours, side, RandAugment; of the colours jitter, grey, blur; jitter's four in any order."""
    views = draw("published", 2000)
    order = {name: place for place, names in enumerate([CHANGES, [GREY], ["blur"], ["randaugment"]]) for name in names}
    jitters: dict[str, int] = {}
    for view in views:
        places = [order[event.name] for event in view.events]
        assert places == sorted(places)
        assert not any(event.flipped for event in view.of(*CHANGES, GREY, "blur"))
        assert all(event.flipped == view.flipped for event in view.of("randaugment"))
        names = [event.name for event in view.of(*CHANGES)]
        assert not names or sorted(names) == sorted(CHANGES)
        jitters[" ".join(names)] = jitters.get(" ".join(names), 0) + 1
    del jitters[""]
    assert len(jitters) == math.factorial(4) and follows(torch.tensor(list(jitters.values())), torch.ones(24))


def test_whole_views_are_flipped_and_distorted_and_nothing_else() -> None:
    assert [step.get("call") for step in recorded("grounding", "grounding_dataset")[:2]] == [
        "transforms.Resize",
        "transforms.RandomHorizontalFlip",
    ]
    views = draw("whole", 600)
    assert {event.name for view in views for event in view.events} == {"randaugment"}
    assert all(event.flipped == view.flipped for view in views for event in view.events)
    stayed = torch.tensor([3 * view.flipped + len(view.events) for view in views])
    assert follows(stayed.bincount(minlength=6), torch.tensor([1, 2, 1, 1, 2, 1]))


def test_mild_views_are_a_little_brighter_or_darker_and_nothing_else() -> None:
    views = draw("mild", 600)
    assert not any(view.flipped for view in views)
    brighter_first = 0
    for view in views:
        names = [event.name for event in view.events]
        assert sorted(names) == ["adjust_brightness", "adjust_contrast"]
        brighter_first += names[0] == "adjust_brightness"
    assert is_rate(brighter_first, 600, 0.5)
    for name in ("adjust_brightness", "adjust_contrast"):
        assert is_uniform([event.values[0] for view in views for event in view.of(name)], 0.9, 1.1)


def test_operations_on_one_view_of_a_sample_say_nothing_about_the_other() -> None:
    views = draw("published", 2000)
    for what in (lambda view: view.flipped, lambda view: bool(view.of("blur")), lambda view: bool(view.of(*CHANGES))):
        had = torch.tensor([what(view) for view in views])
        rate = had.float().mean()
        each = torch.stack([1 - rate, rate])
        assert follows((2 * had[0::2].long() + had[1::2]).bincount(minlength=4), torch.outer(each, each).flatten())


@pytest.mark.parametrize("name", ["published", "mild"])
def test_each_view_shows_a_crop_of_its_own(name: str) -> None:
    rows, columns = np.mgrid[:256, :256].astype(np.uint8)
    image = Image.fromarray(np.stack([columns, rows, columns], axis=-1))
    transform = build_transform(name, 32)  # type: ignore[arg-type]
    transform.operations = []
    crops: list[tuple[float, ...]] = []
    choose = transform.crop
    assert choose is not None
    transform.crop = lambda *shape: crops.append(choose(*shape)) or crops[-1]  # type: ignore[func-returns-value]
    torch.manual_seed(0)
    for _ in range(10):
        crops.clear()
        views = transform.views(image, 2)
        assert len(crops) == 2 and crops[0] != crops[1]
        for view, (left, top, right, low) in zip(views, crops, strict=True):
            assert view[0].float().mean() == pytest.approx((left + right - 1) / 2, abs=1)
            assert view[1].float().mean() == pytest.approx((top + low - 1) / 2, abs=1)


def crop_curves(min_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Areas, shares of crops that are smaller, logarithms of ratios, and shares of crops that are narrower.

    Area and ratio are uniform where the crop fits into a square; what does not fit is drawn again.
    """
    areas = torch.linspace(min_scale, 1, 2001, dtype=torch.float64)
    ratios = torch.linspace(math.log(3 / 4), math.log(4 / 3), 2001, dtype=torch.float64)
    fits = areas[:, None] * ratios.abs().exp() <= 1
    smaller, narrower = (fits.sum(dim=dim).cumsum(0).double() / fits.sum() for dim in (1, 0))
    return areas, smaller, ratios, narrower


@pytest.mark.parametrize(("arguments", "min_scale"), [((), 0.2), ((0.5,), 0.5)])
def test_published_crops(arguments: tuple[float, ...], min_scale: float) -> None:
    side = 4000  # so large that whole pixels do not show
    crop = build_transform("published", 8, *arguments).crop
    assert crop is not None
    torch.manual_seed(0)
    edges = torch.tensor([crop(side, side) for _ in range(2000)], dtype=torch.float64)
    left, top, right, low = edges.T
    width, height = right - left, low - top
    assert (left >= 0).all() and (top >= 0).all() and (right <= side).all() and (low <= side).all()
    areas, smaller, ratios, narrower = crop_curves(min_scale)
    area, ratio = width * height / side**2, (width / height).log()
    assert min_scale - 1e-3 < area.min() and area.max() <= 1
    assert ratio.exp().min() > 3 / 4 - 1e-3 and ratio.exp().max() < 4 / 3 + 1e-3
    assert follows_curve(smaller[torch.searchsorted(areas, area).clamp(max=2000)])
    assert follows_curve(narrower[torch.searchsorted(ratios, ratio).clamp(max=2000)])
    for start, room in ((left, side - width), (top, side - height)):
        assert is_uniform((start / (room + 1)).tolist(), 0.0, 1.0)


def test_mild_crops() -> None:
    """Four fifths of the area or more, and nearly the shape of the image."""
    crop = build_transform("mild", 8).crop
    assert crop is not None
    torch.manual_seed(0)
    left, top, right, low = torch.tensor([crop(4000, 3000) for _ in range(2000)], dtype=torch.float64).T
    wide, high = (right - left) / 4000, (low - top) / 3000
    stretch = (wide / high).log()
    assert (left >= 0).all() and (top >= 0).all() and wide.max() <= 1 and high.max() <= 1
    assert is_uniform((wide * high)[stretch.abs() < 0.001].tolist(), 0.8, 1.0)
    assert (wide * high).min() == pytest.approx(0.8, abs=1e-3)
    assert [stretch.min(), stretch.max()] == pytest.approx([-0.05, 0.05], abs=1e-3)
    for start, room in ((left, 4000 * (1 - wide)), (top, 3000 * (1 - high))):
        assert is_uniform((start / room)[room > 0].tolist(), 0.0, 1.0)


def test_whole_views_and_those_of_evaluation_are_not_cropped() -> None:
    crop = build_transform("whole", 8).crop
    assert crop is not None and crop(30, 20) == (0, 0, 30, 20)
    assert build_transform("none", 8).crop is None


@pytest.mark.parametrize(
    ("recipe", "job", "name"),
    [
        ("tcl-4m", "pretrain", "pretrain_dataset"),
        ("tcl-14m", "pretrain", "pretrain_dataset"),
        ("nlvr2-ta", "pretrain", "pretrain_dataset"),
        ("retrieval-coco", "re", "re_train_dataset"),
        ("retrieval-flickr", "re", "re_train_dataset"),
        ("vqa", "vqa", "vqa_dataset"),
        ("snli-ve", "ve", "ve_dataset"),
        ("nlvr2", "nlvr", "nlvr_dataset"),
        ("refcoco+", "grounding", "grounding_dataset"),
    ],
)
def test_published_recipes_have_the_published_views(recipe: str, job: str, name: str) -> None:
    data, first = load_recipe(recipe).data, recorded(job, name)[0]
    if first["call"] == "transforms.RandomResizedCrop":
        assert (data.augment, [data.min_scale, 1.0]) == ("published", first["kwargs"]["scale"])
        assert recorded(job, name)[1:] == recorded("pretrain", "pretrain_dataset")[1:]
    else:
        assert data.augment == "whole"
