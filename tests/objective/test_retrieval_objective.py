"""Retrieval fine-tuning against what the published implementation computed, and its cases that the recording lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tcl.config.recipe import OptimConfig
from tcl.objective.losses import distilled_targets
from tcl.objective.momentum import MomentumTeacher
from tcl.objective.retrieval import (
    ImageIdQueue,
    RetrievalLosses,
    RetrievalObjective,
    itm_labels,
    other_image_weights,
    pool_to_cells,
    sample_other_images,
)
from tcl.training.optim import build_optimizer
from tests.conftest import make_tiny_model
from tests.objective.test_objective import check_contrast_is_exact_under_autocast
from tests.objective.test_parity import MOMENTUM, Case, close, gradient_is_noise, load_case, pixels


def objective_of(case: Case) -> RetrievalObjective:
    t = case.tensors
    queue = ImageIdQueue(*t["state/image_queue"].shape)
    queue.load_state_dict({key: t[f"state/{key}"] for key in ("image_queue", "text_queue", "queue_ptr", "idx_queue")})
    return RetrievalObjective(case.model, case.teacher, queue).eval()


@pytest.fixture
def case(golden: Any) -> Case:
    """The retrieval case with the teacher moved, as at the start of the recorded forward."""
    case = load_case(golden, "retrieval")
    case.teacher.update(case.model, MOMENTUM)
    return case


def forward(case: Case, objective: RetrievalObjective, alpha: float) -> tuple[RetrievalLosses, Tensor, Tensor]:
    t = case.tensors
    return objective(
        pixels(t["in/image_u8"]),
        pixels(t["in/image_aug_u8"]),
        t["in/input_ids"],
        t["in/attention_mask"].bool(),
        t["in/idx"],
        alpha,
        negatives=(t["draw/neg_image_idx"], t["draw/neg_text_idx"]),
    )


@torch.no_grad()
def test_targets_local_features_and_negative_weights(case: Case) -> None:
    t, objective = case.tensors, objective_of(case)
    mask, idx = t["in/attention_mask"].bool(), t["in/idx"]
    image, text = case.model.encode_image(pixels(t["in/image_u8"])), case.model.encode_text(t["in/input_ids"], mask)
    image_m = case.teacher.model.encode_image(pixels(t["in/image_aug_u8"]))
    text_m = case.teacher.model.encode_text(t["in/input_ids"], mask)
    sims = objective.similarities(image, text, image_m, text_m)
    positives = objective.positives(idx)
    image_local, text_local = objective.local_features(image_m, text_m)
    for name, actual in {
        "sim_i2t": sims.i2t,
        "sim_t2i": sims.t2i,
        "sim_i2i": sims.i2i,
        "sim_t2t": sims.t2t,
        "sim_targets": positives,
        "sim_i2t_targets": distilled_targets(sims.i2t_m, positives, 0.4),
        "sim_t2i_targets": distilled_targets(sims.t2i_m, positives, 0.4),
        "image_feat_m_l": image_local,
        "text_feat_m_l": text_local,
    }.items():
        close(actual, t[f"mid/{name}"], name)
    same = idx[:, None] == idx
    for name, own in (("i2t", sims.i2t), ("t2i", sims.t2i)):
        recorded = t[f"mid/weights_{name}"]  # not renormalised; the draw ignores that
        close(other_image_weights(own[:, :4], same), recorded / recorded.sum(dim=1, keepdim=True), name)


def test_losses_and_gradients(case: Case) -> None:
    losses, _, _ = forward(case, objective_of(case), float(case.tensors["in/alpha"]))
    for name, actual in {
        "loss_i2t": losses.cma_i2t,
        "loss_t2i": losses.cma_t2i,
        "loss_i2i": losses.imc_image,
        "loss_t2t": losses.imc_text,
        "loss_i2i_inMod_l": losses.lmi_image,
        "loss_t2t_inMod_l": losses.lmi_text,
        "loss_ita": losses.contrastive,
        "loss_itm": losses.itm,
        "loss_total": losses.total,
    }.items():
        close(actual, case.tensors[f"out/{name}"], name)

    losses.total.backward()
    recorded = dict(case.values["grad_norms"])
    for name, parameter in case.model.named_parameters():
        if parameter.grad is None:
            assert name.startswith("text_encoder.cls."), name  # MLM is not part of this objective
            continue
        expected = recorded.pop(name.replace("text_encoder.bert.", "text_encoder."))
        if not gradient_is_noise(name) and not name.endswith("attn.qkv.bias"):
            assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-4, abs=1e-7), name
    assert not recorded


def test_without_distillation(case: Case) -> None:
    losses, _, _ = forward(case, objective_of(case), alpha=0.0)
    for name, actual in {
        "loss_i2t": losses.cma_i2t,
        "loss_t2i": losses.cma_t2i,
        "loss_ita": losses.contrastive,
        "loss_itm": losses.itm,
    }.items():
        close(actual, case.tensors[f"out_nodistill/{name}"], name)


def test_state_after_a_step(golden: Any) -> None:
    case = load_case(golden, "retrieval")
    objective, t = objective_of(case), case.tensors
    optimizer = build_optimizer(case.model, OptimConfig(lr=1e-4, warmup_lr=1e-4))
    case.teacher.update(case.model, MOMENTUM)
    losses, image_feat, text_feat = forward(case, objective, float(t["in/alpha"]))
    losses.total.backward()
    optimizer.step()
    objective.queue.enqueue_images(image_feat, text_feat, t["in/idx"])
    close(objective.queue.image_queue, t["post/image_queue"], "image_queue")
    close(objective.queue.text_queue, t["post/text_queue"], "text_queue")
    assert torch.equal(objective.queue.idx_queue, t["post/idx_queue"])
    assert torch.equal(objective.queue.queue_ptr, t["post/queue_ptr"])
    close(case.model.temp, t["post/temp"], "temp")
    state = {name.replace("text_encoder.bert.", "text_encoder."): p for name, p in case.model.named_parameters()}
    compared = 0
    for name, (total, norm) in case.values["post_checksums"].items():
        if name in state and not gradient_is_noise(name) and not name.endswith("attn.qkv.bias"):
            assert state[name].double().sum().item() == pytest.approx(total, rel=2e-5, abs=2e-4), name
            assert state[name].double().norm().item() == pytest.approx(norm, rel=2e-5), name
            compared += 1
    assert compared > 60


def build(queue_size: int = 7) -> RetrievalObjective:
    return RetrievalObjective(
        make_tiny_model(), MomentumTeacher(make_tiny_model(seed=1)), ImageIdQueue(16, queue_size)
    ).eval()


def batch(image_ids: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    size = len(image_ids)
    input_ids = torch.randint(5, 40, (size, 4), generator=generator)
    input_ids[:, 0] = 2
    views = [torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8) for _ in range(2)]
    return {
        "images": views[0],
        "images_aug": views[1],
        "input_ids": input_ids,
        "attention_mask": torch.ones(size, 4, dtype=torch.bool),
        "image_ids": torch.tensor(image_ids),
        "alpha": 0.4,
    }


@pytest.mark.parametrize("image_ids", [[5], [5, 5, 5], [5, 5, 9], [1, 2, 3]])
def test_any_batch_has_finite_losses_and_gradients(image_ids: list[int]) -> None:
    """The published code stops where a sample has no other image in its batch."""
    objective = build()
    losses, _, _ = objective(**batch(image_ids))
    losses.total.backward()
    named = losses.named()
    assert all(torch.isfinite(value) and not value.requires_grad for value in named.values())
    assert named["loss"].item() == pytest.approx((named["contrastive"] + named["itm"]).item())
    gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@torch.no_grad()
def test_contrast_is_exact_under_autocast() -> None:
    check_contrast_is_exact_under_autocast(build(), batch([1, 2, 3]))


def test_a_hard_negative_never_shows_the_same_image() -> None:
    image_ids = torch.tensor([3, 4, 3, 3, 8])
    same = image_ids[:, None] == image_ids
    sim = torch.where(same, 50.0, torch.rand(5, 5))  # the own image is by far the most similar
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = sample_other_images(sim, same, generator)
        assert not same[torch.arange(5), drawn].any()


def test_samples_without_any_other_image_have_no_negative_rows() -> None:
    alike = torch.ones(2, 2, dtype=torch.bool)
    assert itm_labels(alike).tolist() == [1, 1, -100, -100, -100, -100]
    assert itm_labels(torch.eye(2, dtype=torch.bool)).tolist() == [1, 1, 0, 0, 0, 0]


def test_entries_of_an_empty_queue_belong_to_no_image() -> None:
    objective = build(queue_size=3)
    assert objective.positives(torch.tensor([5, 5])).tolist() == [[0.5, 0.5, 0, 0, 0]] * 2
    feat = torch.eye(16)[:2]
    objective.queue.enqueue_images(feat, feat, torch.tensor([5, 6]))
    assert objective.queue.idx_queue.tolist() == [[5, 6, -100]]
    assert objective.positives(torch.tensor([6])).tolist() == [[0.5, 0, 0.5, 0]]


def test_a_batch_larger_than_the_queue() -> None:
    queue = ImageIdQueue(4, 3)
    queue.enqueue_images(torch.eye(4), torch.eye(4), torch.tensor([1, 2, 3, 4]))
    assert queue.idx_queue.tolist() == [[4, 2, 3]] and queue.image_queue[:, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("grid", "cells"), [((24, 24), 16), ((8, 8), 16), ((16, 16), 16), ((14, 14), 16), ((6, 10), 16), ((3, 2), 6)]
)
def test_pooling_of_any_grid(grid: tuple[int, int], cells: int) -> None:
    patches = torch.arange(grid[0] * grid[1]).float()[None, :, None]
    pooled = pool_to_cells(patches, grid)
    assert pooled.shape == (1, cells, 1)
    if cells == 16:
        window = (grid[0] // 4, grid[1] // 4)
        first = patches.view(grid)[: window[0], : window[1]].mean()
        assert pooled[0, 0, 0] == pytest.approx(first.item())
