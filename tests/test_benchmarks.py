"""The plain transcription that our step is timed against computes the recorded losses, gradients and moved teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import plain
from tcl.objective import losses
from tests.objective.test_parity import MOMENTUM, Case, close, gradient_is_noise, load_case, mask_key_third, pixels


@pytest.fixture
def case(golden: Any) -> Case:
    case = load_case(golden, "pretrain")
    plain.move_teacher(case.model, case.teacher.model, MOMENTUM)
    return case


def test_plain_losses_and_gradients_are_the_recorded_ones(case: Case) -> None:
    t = case.tensors
    parts, _, _ = plain.PlainObjective(case.model, case.teacher, case.queue).eval()(
        pixels(t["in/image_u8"]),
        pixels(t["in/image_aug_u8"]),
        t["in/input_ids"],
        t["in/attention_mask"],
        t["draw/mlm_input_ids"],
        t["draw/mlm_labels"],
        float(t["in/alpha"]),
        (t["draw/neg_image_idx"], t["draw/neg_text_idx"]),
    )
    for name, recorded in (("contrastive", "ita"), ("itm", "itm"), ("mlm", "mlm"), ("loss", "total")):
        close(parts[name], t[f"out/loss_{recorded}"], name)
    parts["loss"].backward()
    for name, parameter in case.model.named_parameters():
        if not gradient_is_noise(name):
            actual, expected = (mask_key_third(name, gradient) for gradient in (parameter.grad, t[f"grad/{name}"]))
            assert (actual - expected).abs().max() <= 2e-4 * expected.abs().max(), name


def test_plain_teacher_moves_as_ours(golden: Any, case: Case) -> None:
    ours = load_case(golden, "pretrain")
    ours.teacher.update(ours.model, MOMENTUM)
    for (name, a), b in zip(case.teacher.named_parameters(), ours.teacher.parameters(), strict=True):
        close(a, b, name)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("at_once", [1 << 22, 80, 1])
def test_plain_lmi_equals_ours(masked: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with all anchors at once, two at a time, and one at a time."""
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    local, anchor = torch.randn(5, 7, 8, generator=generator), torch.randn(5, 8, generator=generator).requires_grad_()
    mask = torch.rand(5, 7, generator=generator) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    temperature = torch.tensor(0.3, requires_grad=True)
    ours = losses.lmi_loss(anchor, local, temperature, mask)
    theirs = plain.local_mutual_information(local, anchor, temperature, mask)
    close(ours, theirs, "loss")
    for a, b in zip(*(torch.autograd.grad(loss, (anchor, temperature)) for loss in (ours, theirs)), strict=True):
        close(a, b, "gradient", 2e-4)


def test_drawn_negatives_are_never_the_own_pair() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        for drawn in plain.draw_negatives(torch.randn(4, 9), torch.randn(4, 9)):
            assert all(drawn != torch.arange(4)) and drawn.min() >= 0 and drawn.max() < 4
