"""Visual entailment against the published implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tcl.objective.classification import ClassifierObjective
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


@pytest.mark.parametrize(("alpha", "taught"), [(0.4, True), (0.1, True), (0.0, True), (0.4, False)])
def test_loss(case: TaskCase, alpha: float, taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded at alpha 0.4 and without a teacher; between them it is a straight line."""
    t = case.tensors
    share = alpha / 0.4 if taught else 0
    objective = ClassifierObjective(case.model, case.teacher if taught else None)
    asked, encode = [], case.teacher.model.encode_image

    def asking(images: torch.Tensor) -> Any:
        asked.append(torch.is_grad_enabled())
        return encode(images)

    monkeypatch.setattr(case.teacher.model, "encode_image", asking)
    losses = objective(
        pixels(t["in/image_u8"]), t["in/input_ids"], t["in/attention_mask"].bool(), t["in/targets"], alpha
    )
    close(losses.total, torch.lerp(t["out/loss_nodistill"], t["out/loss"], share), "loss")
    assert asked == ([False] if share else [])  # nothing is spent on a teacher without a say
    right = (t["out/prediction"].argmax(dim=1) == t["in/targets"]).float().mean()
    assert losses.named() == {"loss": losses.total, "accuracy": right}
    assert not any(figure.requires_grad for figure in losses.named().values())
    if share == 1:
        losses.total.backward()
        case.check_gradients()
        case.check_teacher()
        assert case.trained() == case.recorded_trained()
