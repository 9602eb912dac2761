"""Visual entailment against the published implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tcl.tasks.statements import ClassifierObjective
from tests.tasks.cases import MOMENTUM, TaskCase, close, load_case, pixels


@pytest.fixture
def case(golden: Any) -> TaskCase:
    """The recorded case with the teacher moved, as at the start of the recorded forward."""
    case = load_case(golden, "ve")
    case.teacher.update(case.model, MOMENTUM)
    return case


@torch.no_grad()
def test_states_and_predictions(case: TaskCase) -> None:
    t = case.tensors
    mask = t["in/attention_mask"].bool()
    for net, prediction in ((case.model, "out/prediction"), (case.teacher.model, "mid/prediction_m")):
        image_embeds = net.encode_image(pixels(t["in/image_u8"])).image_embeds
        close(net.classify(net.image_key_values(image_embeds), t["in/input_ids"], mask), t[prediction], prediction)
        if net is case.model:
            close(image_embeds, t["mid/image_embeds"], "image_embeds")
            fused = net.fuse_images(net.image_key_values(image_embeds), net.encode_text(t["in/input_ids"], mask))
            close(fused, t["mid/fused"], "fused")


@pytest.mark.parametrize(
    ("alpha", "taught", "recorded"),
    [(0.4, True, "out/loss"), (0.0, True, "out/loss_nodistill"), (0.4, False, "out/loss_nodistill")],
)
def test_loss(case: TaskCase, alpha: float, taught: bool, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    t = case.tensors
    objective = ClassifierObjective(case.model, case.teacher if taught else None)
    asked, encode = [], case.teacher.model.encode_image

    def asking(images: torch.Tensor) -> Any:
        asked.append(torch.is_grad_enabled())
        return encode(images)

    monkeypatch.setattr(case.teacher.model, "encode_image", asking)
    losses = objective(
        pixels(t["in/image_u8"]), t["in/input_ids"], t["in/attention_mask"].bool(), t["in/targets"], alpha
    )
    close(losses.total, t[recorded], recorded)
    distilled = recorded == "out/loss"
    assert asked == ([False] if distilled else [])  # nothing is spent on a teacher without a say
    right = (t["out/prediction"].argmax(dim=1) == t["in/targets"]).float().mean()
    assert losses.named() == {"loss": losses.total, "accuracy": right}
    assert not any(figure.requires_grad for figure in losses.named().values())
    if distilled:
        losses.total.backward()
        case.check_gradients()
        case.check_teacher()
        assert case.trained() == case.recorded_trained()
