"""Hard negatives follow the recorded weights of their direction: a text draws its image, an image draws its text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tcl.objective.pretrain import PretrainObjective
from tcl.objective.retrieval import ImageIdQueue, RetrievalObjective, sample_other_images
from tcl.objective.sampling import sample_negatives
from tests.chance import follows
from tests.objective.test_parity import MOMENTUM, Case, load_case, pixels

DIRECTIONS = ("t2i", "i2t")


def draw(t: dict[str, Tensor], direction: str, generator: torch.Generator) -> Tensor:
    """From the recorded similarities, as the objective of the case does."""
    sim = t[f"mid/sim_{direction}"][:, :4]
    if "in/idx" not in t:
        return sample_negatives(sim, generator)
    return sample_other_images(sim, t["in/idx"][:, None] == t["in/idx"], generator)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["pretrain", "retrieval"])
def test_draws_follow_the_recorded_weights(golden: Any, name: str, direction: str) -> None:
    t, generator = golden(name)[0], torch.Generator().manual_seed(0)
    weights = t[f"mid/weights_{direction}"]
    reverse = t["mid/weights_i2t" if direction == "t2i" else "mid/weights_t2i"]
    draws = torch.stack([draw(t, direction, generator) for _ in range(4000)])
    counts = [draws[:, row].bincount(minlength=4) for row in range(4)]
    assert all(follows(counts[row], weights[row]) for row in range(4))
    assert not any(follows(counts[row], reverse[row]) for row in (1, 3))  # nor is the other direction like this one


def objective_of(case: Case) -> PretrainObjective | RetrievalObjective:
    t = case.tensors
    if "in/idx" not in t:
        return PretrainObjective(case.model, case.teacher, case.queue).eval()
    queue = ImageIdQueue(*t["state/image_queue"].shape)
    queue.load_state_dict({key: t[f"state/{key}"] for key in ("image_queue", "text_queue", "queue_ptr", "idx_queue")})
    return RetrievalObjective(case.model, case.teacher, queue).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["pretrain", "retrieval"])
def test_matching_sees_the_negatives_of_its_direction(golden: Any, name: str) -> None:
    """ITM of the objective's own draws is that of draws from the recorded similarities, images first, then texts."""
    case = load_case(golden, name)
    case.teacher.update(case.model, MOMENTUM)
    objective, t = objective_of(case), case.tensors
    batch = [pixels(t["in/image_u8"]), pixels(t["in/image_aug_u8"]), t["in/input_ids"], t["in/attention_mask"].bool()]
    batch.append(t["in/idx"] if "in/idx" in t else case.masked("draw"))
    told_apart = 0
    for seed in range(6):
        right, wrong = (
            tuple(draw(t, direction, generator) for direction in order)
            for order in (DIRECTIONS, DIRECTIONS[::-1])
            for generator in [torch.Generator().manual_seed(seed)]
        )
        itm = objective(*batch, 0.4, torch.Generator().manual_seed(seed))[0].itm
        torch.testing.assert_close(itm, objective(*batch, 0.4, negatives=right)[0].itm, rtol=1e-5, atol=1e-6)
        told_apart += not torch.isclose(itm, objective(*batch, 0.4, negatives=wrong)[0].itm, rtol=1e-3)
    assert told_apart >= 3
