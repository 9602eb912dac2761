"""The smooth schedule and the groups of AdamW; the published stairs are in the parity tests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tcl.config.recipe import OptimConfig
from tcl.training.optim import build_optimizer, distillation_weight, learning_rate

CONFIG = OptimConfig(lr=1e-3, warmup_lr=1e-4, min_lr=1e-5, warmup_steps=20)


def rate(step: int, total: int = 120, config: OptimConfig = CONFIG) -> float:
    return learning_rate(step, config, 30, total)


def test_it_warms_up_in_a_line_and_then_follows_a_cosine() -> None:
    assert [rate(step) for step in (0, 5, 10, 20)] == pytest.approx([1e-4, 3.25e-4, 5.5e-4, 1e-3])
    middle, end = (1e-3 + 1e-5) / 2, 1e-5
    assert [rate(step) for step in (70, 120)] == pytest.approx([middle, end])
    assert rate(45) == pytest.approx(middle + (1e-3 - middle) * math.cos(math.pi / 4))
    rates = [rate(step) for step in range(121)]
    assert sorted(rates[:21]) == rates[:21] and sorted(rates[20:], reverse=True) == rates[20:]
    assert rate(500) == pytest.approx(end)  # a run that goes on for longer than was planned


@pytest.mark.parametrize("total", [1, 10, 20, 21])
def test_a_run_shorter_than_its_warm_up(total: int) -> None:
    assert [rate(step, total) for step in range(min(total, 20))] == [rate(step) for step in range(min(total, 20))]
    assert rate(20, total) == pytest.approx(1e-3) and rate(21, total) == pytest.approx(1e-5)


def test_no_warm_up() -> None:
    config = CONFIG.model_copy(update={"warmup_steps": 0})
    assert rate(0, config=config) == 1e-3 and rate(120, config=config) == pytest.approx(1e-5)


def test_a_long_published_warm_up_has_a_stair_for_every_hundred_steps() -> None:
    config = CONFIG.model_copy(update={"warmup_steps": 10_000, "schedule": "published"})
    rates = [learning_rate(step, config, 20_000, 40_000) for step in (0, 100, 101, 5_001, 9_901, 10_001, 19_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4 + 9e-6, 5.5e-4, 1e-3 - 9e-6, 1e-3, 1e-3])


def test_alpha_grows_over_the_first_epoch() -> None:
    assert [distillation_weight(step, 0.4, 10) for step in (0, 5, 10, 25)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert distillation_weight(0, 0.4, 10, ramp=False) == 0.4


def test_frozen_parameters_are_left_out_and_those_with_one_dimension_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model.scale = nn.Parameter(torch.tensor(1.0))
    model[2].requires_grad_(False)
    plain, decayed = build_optimizer(model, CONFIG).param_groups
    assert plain["params"] == [model[0].bias, model[1].weight, model[1].bias] and plain["weight_decay"] == 0
    assert decayed["params"] == [model.scale, model[0].weight] and decayed["weight_decay"] == CONFIG.weight_decay
