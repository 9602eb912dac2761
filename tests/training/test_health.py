"""The monitor: each failure is named once, with a way out; healthy runs hear nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tcl.training.health import CALM, HealthMonitor

CANDIDATES = 65536 + 64
CHANCE = math.log(CANDIDATES)
RECORDED = Path(__file__).parents[1] / "recorded"  # the demo, and the same with a learning rate of 0.5


def healthy(step: int, **changes: Any) -> dict[str, Any]:
    """A record of a run that goes well, with the noise of single batches."""
    draw = random.Random(step)
    decay = math.exp(-step / 3000)
    record: dict[str, Any] = {
        "step": step,
        "epoch": step / 8000,
        "cma_i2t": 3 + 7 * decay + draw.gauss(0, 0.2),
        "cma_t2i": 3 + 7 * decay + draw.gauss(0, 0.2),
        "itm": 0.25 + 0.38 * decay + draw.gauss(0, 0.03),
        "mlm": 1.2 + 4 * decay + draw.gauss(0, 0.1),
        "temperature": 0.02 + 0.05 * decay,
        "grad_norm": math.exp(draw.gauss(1, 0.5)),
        "loader_wait": abs(draw.gauss(0, 0.05)),
        "image_feat_std": 0.8,
        "text_feat_std": 0.7,
        "duplicate_negatives": 0.0,
    }
    record["loss"] = record["cma_i2t"] / 2 + record["itm"] + record["mlm"]
    return record | changes


def examine(monitor: HealthMonitor, count: int, first: int = 50, every: int = 50, **changes: Any) -> list[str]:
    """Everything the monitor says about `count` records."""
    steps = range(first, first + count * every, every)
    return [text for step in steps for text in monitor.examine(healthy(step, **changes))]


def only(warnings: list[str], *words: str) -> None:
    assert len(warnings) == 1, warnings
    for word in words:
        assert word in warnings[0]
    assert "Try" in warnings[0] or "Likely causes" in warnings[0]


def test_a_healthy_run_hears_nothing() -> None:
    assert examine(HealthMonitor(CANDIDATES, warmup_steps=2000), 1000) == []
    assert examine(HealthMonitor(CANDIDATES), 3000, every=1) == []
    assert examine(HealthMonitor(None), 100) == []


def recorded(name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of a real run, and what the monitor says about them."""
    monitor = HealthMonitor(16 + 128, warmup_steps=100)
    records = [json.loads(line) for line in (RECORDED / name).read_text().splitlines()]
    return records, [text for record in records for text in monitor.examine(record)]


def test_a_recorded_healthy_run_hears_nothing() -> None:
    records, said = recorded("demo_metrics.jsonl")
    assert len(records) > 50 and any("val_r_mean" in record for record in records)
    assert said == []


def test_a_recorded_collapse_is_found() -> None:
    _, said = recorded("collapsed_metrics.jsonl")
    assert "image encoder has collapsed: since step 100" in said[0]
    assert "text encoder has collapsed: since step 100" in said[1]
    assert len(said) == 3 and "gradient norm" in said[2]


def test_a_loss_that_stays_at_chance_is_a_collapse() -> None:
    monitor = HealthMonitor(CANDIDATES)
    stuck = {"cma_i2t": CHANCE * 1.001, "cma_t2i": CHANCE * 0.99}
    only(examine(monitor, 40, **stuck), "65,600", "11.09", "since step 50,", "learning rate", "`tcl data check`")


@pytest.mark.parametrize(("every", "fall"), [(1, 0.0004), (10, 0.002), (50, 0.005)])
def test_a_loss_that_passes_through_chance_is_none(every: int, fall: float) -> None:
    monitor = HealthMonitor(CANDIDATES)
    said = []
    for number in range(400):
        cma = max(CHANCE * (1.04 - fall * number), 3)
        said += monitor.examine(healthy(50 + number * every, cma_i2t=cma, cma_t2i=cma))
    assert said == []


def test_a_loss_that_is_stuck_with_some_noise_is_found() -> None:
    monitor, draw = HealthMonitor(CANDIDATES), random.Random(0)
    said = []
    for step in range(50, 2000, 50):
        noise = {key: CHANCE + draw.gauss(0, 0.03) for key in ("cma_i2t", "cma_t2i")}
        said += monitor.examine(healthy(step, **noise))
    only(said, "guessing")


def test_warm_up_may_stand_still() -> None:
    stuck = {"cma_i2t": CHANCE, "cma_t2i": CHANCE}
    monitor = HealthMonitor(CANDIDATES, warmup_steps=2000)
    assert examine(monitor, 40, **stuck) == []  # up to step 2,000
    only(examine(monitor, 40, first=2050, **stuck), "since step 2,")


def test_waiting_for_data_counts_from_the_start() -> None:
    only(examine(HealthMonitor(CANDIDATES, warmup_steps=2000), 5, loader_wait=0.5), "50%")


def test_one_stuck_direction_is_no_guess() -> None:
    assert examine(HealthMonitor(CANDIDATES), 40, cma_i2t=CHANCE) == []


def test_a_collapsed_encoder_is_named() -> None:
    only(examine(HealthMonitor(CANDIDATES), 40, image_feat_std=0.004), "image encoder has collapsed", "0.004")
    only(examine(HealthMonitor(CANDIDATES), 40, text_feat_std=0.05), "text encoder has collapsed")


def test_a_warning_is_given_again_only_after_it_was_away() -> None:
    monitor = HealthMonitor(CANDIDATES)
    assert len(examine(monitor, 20, image_feat_std=0.0)) == 1
    examine(monitor, 3, first=1050)
    assert examine(monitor, 6, first=1200, image_feat_std=0.0) == []
    examine(monitor, CALM, first=5000)
    assert len(examine(monitor, 20, first=6000, image_feat_std=0.0)) == 1


@pytest.mark.parametrize(("value", "word"), [(0.001, "lower"), (0.0009, "lower"), (0.5, "upper"), (0.503, "upper")])
def test_a_temperature_at_its_bound(value: float, word: str) -> None:
    only(examine(HealthMonitor(CANDIDATES), 10, temperature=value), f"{word} bound")


def test_starvation_is_a_percentage_of_more_than_one_line() -> None:
    monitor = HealthMonitor(CANDIDATES)
    assert monitor.examine(healthy(50, loader_wait=0.9)) == []  # workers start
    assert examine(monitor, 5, first=100) == []
    only(examine(monitor, 5, first=400, loader_wait=0.42), "42%", "data.workers", "`tcl data pack`")


def test_an_exploding_gradient() -> None:
    monitor = HealthMonitor(CANDIDATES)
    assert monitor.examine(healthy(1, grad_norm=1e4)) == []  # nothing to compare with yet
    examine(monitor, 20)
    only(monitor.examine(healthy(2000, grad_norm=400.0)), "gradient norm is 400", "optim.clip_norm=1.0")
    assert monitor.examine(healthy(2050, grad_norm=700.0)) == []


def test_a_loss_that_jumps_and_stays() -> None:
    monitor = HealthMonitor(CANDIDATES)
    examine(monitor, 30, loss=5.0)
    assert monitor.examine(healthy(2000, loss=30.0)) == []  # one odd batch
    assert monitor.examine(healthy(2050, loss=5.0)) == []
    only(examine(monitor, 5, first=2100, loss=30.0), "jumped to 30", "checkpoint")


def test_noise_of_a_small_loss_is_no_jump() -> None:
    monitor, draw = HealthMonitor(None), random.Random(0)
    records = [{"step": step, "loss": abs(draw.gauss(0, 0.1))} for step in range(3000)]
    assert [text for record in records for text in monitor.examine(record)] == []


def test_copies_among_the_negatives() -> None:
    only(examine(HealthMonitor(CANDIDATES), 10, duplicate_negatives=0.1), "10.00%", "loss.queue_size")
    only(examine(HealthMonitor(CANDIDATES), 10, duplicate_negatives=1 / 1000), "0.10%", "66 for each sample")
    only(examine(HealthMonitor(None), 10, duplicate_negatives=0.06), "6.00%")
    assert examine(HealthMonitor(CANDIDATES), 10, duplicate_negatives=0.5 / CANDIDATES) == []


def test_copies_that_a_collapse_explains_are_not_told_twice() -> None:
    only(examine(HealthMonitor(CANDIDATES), 10, duplicate_negatives=1.0, image_feat_std=0.0), "collapsed")


@pytest.mark.parametrize("value", [0.6365, 0.693])
def test_matching_that_only_guesses(value: float) -> None:
    only(examine(HealthMonitor(CANDIDATES), 60, itm=value), "matching loss (ITM)", f"{value:.3f}"[:4])
    assert examine(HealthMonitor(CANDIDATES), 30, itm=value) == []  # it takes a while to get going


def test_words_that_are_not_learnt() -> None:
    only(examine(HealthMonitor(CANDIDATES), 60, mlm=9.9), "masked-word loss (MLM) does not move: 9.90", "tokenizer")
    assert examine(HealthMonitor(CANDIDATES), 60, mlm=1.2) == []  # weights that knew them before


def test_odd_records_do_no_harm() -> None:
    monitor = HealthMonitor(1)
    odd = [
        {},
        {"step": 1},
        {"loss": 1.0},
        {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "mlm": None, "itm": "x", "text_feat_std": True},
        {"step": 2, "val_r_mean": 3.0},
    ]
    assert [monitor.examine(record) for record in odd] == [[]] * len(odd)


def test_a_collapse_is_said_within_twenty_lines_however_often_they_come() -> None:
    said = examine(HealthMonitor(CANDIDATES, warmup_steps=10), 20, first=11, every=1, image_feat_std=0.01)
    only(said, "image encoder has collapsed")


def test_a_collapse_in_the_warm_up_is_said_where_features_were_spread_before() -> None:
    monitor = HealthMonitor(CANDIDATES, warmup_steps=10_000)
    assert examine(monitor, 30, first=1, every=1, image_feat_std=0.01) == []  # as a new model starts
    assert examine(monitor, 5, first=31, every=1, image_feat_std=0.8) == []
    only(examine(monitor, 20, first=36, every=1, image_feat_std=0.01), "image encoder has collapsed: since step 36")


@pytest.mark.parametrize(("value", "where"), [(-0.2, "below its lower"), (0.0005, "below"), (0.9, "above its upper")])
def test_a_temperature_outside_its_range_is_said(value: float, where: str) -> None:
    only(examine(HealthMonitor(CANDIDATES), 3, temperature=value), f"the temperature is {value:g}, {where}")
