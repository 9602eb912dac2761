"""NLVR2 and text assignment against the published implementation, and what the doubled layers leave as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tcl.data.labels.classes import ASSIGNMENT, NLVR2
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tcl.objective.classification import ClassifierObjective
from tcl.objective.text_assignment import (
    FIRST,
    NEITHER,
    SECOND,
    TextAssignmentObjective,
    assign,
    assignment_weights,
    draw_assignment,
)
from tests.chance import follows
from tests.tasks.cases import MOMENTUM, TaskCase, close, load_case, pixels

LAYERS = 12  # 18 in the recordings, after the fusion layers were doubled


@pytest.fixture
def case(golden: Any) -> TaskCase:
    """The recorded case with the teacher moved, as at the start of the recorded forward."""
    case = load_case(golden, "nlvr", LAYERS)
    case.teacher.update(case.model, MOMENTUM)
    return case


def images(case: TaskCase) -> torch.Tensor:
    return pixels(torch.cat([case.tensors["in/image0_u8"], case.tensors["in/image1_u8"]]))


@torch.no_grad()
def test_states_and_predictions(case: TaskCase) -> None:
    t = case.tensors
    mask = t["in/attention_mask"].bool()
    for net, prediction in ((case.model, "out/prediction"), (case.teacher.model, "mid/prediction_m")):
        image_embeds = net.encode_image(images(case)).image_embeds
        close(net.classify(net.image_key_values(image_embeds), t["in/input_ids"], mask), t[prediction], prediction)
        if net is case.model:
            close(image_embeds, t["mid/image_embeds"], "image_embeds")
            fused = net.fuse_images(net.image_key_values(image_embeds), net.encode_text(t["in/input_ids"], mask))
            close(fused, t["mid/fused"], "fused")


def test_loss(case: TaskCase) -> None:
    t = case.tensors
    objective = ClassifierObjective(case.model, case.teacher)
    losses = objective(images(case), t["in/input_ids"], t["in/attention_mask"].bool(), t["in/targets"], 0.4)
    close(losses.total, t["out/loss"], "loss")
    losses.total.backward()
    case.check_gradients()
    case.check_teacher()
    assert case.trained() == case.recorded_trained()


def test_text_assignment(golden: Any) -> None:
    case = load_case(golden, "pretrain_nlvr", LAYERS)
    t = case.tensors
    objective = TextAssignmentObjective(case.model)
    image = case.model.encode_image(pixels(t["in/image_u8"]))
    close(image.image_embeds, t["mid/image_embeds"], "image_embeds")
    close(image.image_feat, t["mid/image_feat"], "image_feat")
    recorded = t["mid/weights"]  # not renormalised after the diagonal was cleared; the draw ignores that
    weights = assignment_weights(image.image_feat)
    close(weights, recorded / recorded.sum(dim=1, keepdim=True), "weights")

    drawn = replay(case.values["draws_in_order"])
    assert torch.equal(drawn.image_of_text, torch.stack([t["draw/image0_idx"], t["draw/image1_idx"]], dim=1))
    assert torch.equal(drawn.labels, t["draw/labels"])
    mask = t["in/attention_mask"].bool()
    logits = case.model.assign(
        case.model.image_key_values(image.image_embeds), t["in/input_ids"], mask, drawn.image_of_text
    )
    close(logits, t["mid/pred"], "pred")
    losses = objective(pixels(t["in/image_u8"]), t["in/input_ids"], mask, assignment=drawn)
    close(losses.total, t["out/loss"], "loss")
    losses.total.backward()
    case.check_gradients()
    assert case.trained() == case.recorded_trained()
    labels = t["mid/pred"].argmax(dim=1)
    labels[2:] = (labels[2:] + 1) % 3
    losses = objective(pixels(t["in/image_u8"]), t["in/input_ids"], mask, assignment=drawn._replace(labels=labels))
    assert losses.named()["accuracy"].item() == pytest.approx(2 / len(labels))


def replay(draws: list[Any]) -> Any:
    """The recorded draws in the shape of ours."""
    negatives, one_negative, own_first = [], [], []
    rest = iter(draws)
    for _, value in rest:
        one = value[0] > 1 / 3
        drawn = next(rest)[1]
        negatives.append((drawn * 2)[:2])
        one_negative.append(one)
        own_first.append(next(rest)[1][0] > 0.5 if one else False)
    return assign(torch.tensor(negatives), torch.tensor(one_negative), torch.tensor(own_first))


def test_draws_follow_the_recorded_weights(golden: Any) -> None:
    """Own image first, own image second, or two others: a third each. The second of two is drawn without the first."""
    t, generator = golden("pretrain_nlvr")[0], torch.Generator().manual_seed(0)
    draws = [draw_assignment(t["mid/image_feat"], generator) for _ in range(4000)]
    labels, images = torch.stack([draw.labels for draw in draws]), torch.stack([draw.image_of_text for draw in draws])
    for row, weights in enumerate(t["mid/weights"]):
        assert follows(labels[:, row].bincount(minlength=3), torch.ones(3))
        shares = weights / weights.sum()
        for label in (FIRST, SECOND):
            places = images[:, row][labels[:, row] == label]
            assert (places[:, label] == row).all()
            assert follows(places[:, 1 - label].bincount(minlength=len(shares)), shares)
        first, second = images[:, row][labels[:, row] == NEITHER].T
        pairs = (shares[:, None] * shares / (1 - shares[:, None])).fill_diagonal_(0.0)
        assert follows((len(shares) * first + second).bincount(minlength=pairs.numel()), pairs.flatten())


@torch.no_grad()
def test_negatives_are_drawn_by_the_images_at_a_fixed_temperature(golden: Any) -> None:
    case = load_case(golden, "pretrain_nlvr", LAYERS)
    t = case.tensors
    batch = pixels(t["in/image_u8"]), t["in/input_ids"], t["in/attention_mask"].bool()
    case.model.temp.fill_(0.5)  # which is not this one
    objective = TextAssignmentObjective(case.model)
    for seed in range(4):
        loss = objective(*batch, torch.Generator().manual_seed(seed)).total
        drawn = draw_assignment(t["mid/image_feat"], torch.Generator().manual_seed(seed))
        close(loss, objective(*batch, assignment=drawn).total, f"seed {seed}")


def test_the_same_seed_draws_the_same() -> None:
    feats = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    first, second = (draw_assignment(feats, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.image_of_text, second.image_of_text) and torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_text_assignment_of_small_batches(fresh_model: TCL, size: int) -> None:
    head = HeadConfig(task="text_assignment", labels=list(ASSIGNMENT))
    objective = TextAssignmentObjective(attach_head(fresh_model, head))
    ids = torch.randint(5, 50, (size, 6))
    pixels_u8 = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8)
    losses = objective(pixels_u8, ids, torch.ones_like(ids).bool(), torch.Generator().manual_seed(0))
    losses.total.backward()
    assert losses.total.isfinite() and (losses.total.item() == 0) == (size == 1)
    trained = [parameter.grad for parameter in objective.model.parameters() if parameter.requires_grad]
    assert all(gradient is not None for gradient in trained)  # other processes wait for each of them


@pytest.mark.parametrize("size", [2, 3])
def test_a_batch_of_two_has_no_text_without_its_image(size: int) -> None:
    feats = torch.nn.functional.normalize(torch.randn(size, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    draws = [draw_assignment(feats, torch.Generator().manual_seed(seed)) for seed in range(20)]
    labels = {label for draw in draws for label in draw.labels.tolist()}
    assert labels == ({FIRST, SECOND} if size == 2 else {FIRST, SECOND, NEITHER})
    assert all(len(set(images)) == 2 for draw in draws for images in draw.image_of_text.tolist())


@torch.no_grad()
def test_images_are_assigned_exactly_under_autocast(fresh_model: TCL) -> None:
    """The fusion rounds; what is drawn by does not."""
    head = HeadConfig(task="text_assignment", labels=list(ASSIGNMENT))
    objective = TextAssignmentObjective(attach_head(fresh_model, head))
    generator = torch.Generator().manual_seed(0)
    pixels_u8 = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, 50, (64, 4), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        image_feat = objective.model.encode_image(pixels_u8).image_feat
        loss = objective(pixels_u8, ids, ids > 0, torch.Generator().manual_seed(1)).total
        with torch.autocast("cpu", enabled=False):
            drawn = draw_assignment(image_feat, torch.Generator().manual_seed(1))
        assert torch.equal(loss, objective(pixels_u8, ids, ids > 0, assignment=drawn).total)


@torch.no_grad()
def test_doubling_the_layers_changes_nothing_for_one_image(fresh_model: TCL) -> None:
    ids = torch.randint(5, 50, (2, 6))
    text = fresh_model.encode_text(ids, torch.ones_like(ids))
    image = fresh_model.encode_image(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
    before = fresh_model.match(image, text)
    parameters = sum(parameter.numel() for parameter in fresh_model.parameters())
    head = HeadConfig(task="nlvr2", labels=list(NLVR2))
    model = attach_head(fresh_model, head)
    assert torch.equal(model.match(image, text), before)
    assert sum(parameter.numel() for parameter in model.parameters()) > parameters
    again = attach_head(model, head)
    assert len(again.text_encoder.bert.encoder.layer) == 6  # 2 of text, 2 of fusion twice


@torch.no_grad()
def test_shared_images_are_looked_at_once(fresh_model: TCL) -> None:
    model = attach_head(fresh_model, HeadConfig(task="nlvr2", labels=list(NLVR2)))
    pixels_u8 = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    image_of_text = torch.tensor([[0, 1], [1, 0], [2, 2], [0, 2]])
    ids, mask = torch.randint(5, 50, (4, 6)), torch.ones(4, 6, dtype=torch.bool)
    embeds = model.encode_image(pixels_u8).image_embeds
    shared = model.classify(model.image_key_values(embeds), ids, mask, image_of_text)
    repeated = embeds[torch.cat([image_of_text[:, 0], image_of_text[:, 1]])]
    assert torch.allclose(shared, model.classify(model.image_key_values(repeated), ids, mask), atol=1e-6)


def test_layers_start_as_the_published_script_maps_them(golden: Any, fresh_model: TCL) -> None:
    """`remap.json` at real depth, by names; ours has one copy of what a pair shares."""
    renamed = golden("remap")[1]["scripts"]["Pretrain_nlvr"]["renamed"]
    source = TCL.from_config(deep(fresh_model), 300)
    before = dict(source.text_encoder.named_parameters())
    for number, parameter in enumerate(before.values()):
        torch.nn.init.constant_(parameter, number)
    values = {name: parameter.flatten()[0].item() for name, parameter in before.items()}
    model = attach_head(source, HeadConfig(task="text_assignment", labels=list(ASSIGNMENT)))
    state = {f"text_encoder.{name}": value for name, value in model.text_encoder.state_dict().items()}
    wanted = {
        target.replace("text_encoder.", "text_encoder.bert."): source.removeprefix("text_encoder.")
        for target, source in renamed.items()
        if not target.endswith("position_ids")
    }
    own = {name for name in state if ".cls." not in name}
    assert own < set(wanted)
    shared = {name for name in wanted if name not in own}
    assert len(shared) == 24  # key and value of 6 layers, weight and bias
    for name in shared:
        layer = int(name.split(".")[4])
        twin = name.replace(f".layer.{layer}.", f".layer.{layer - 1}.")
        assert layer % 2 == 1 and wanted[name] == wanted[twin] and twin in own
    for name in own:
        assert state[name].flatten()[0].item() == values[wanted[name]], name


def deep(model: TCL) -> Any:
    config = copy.deepcopy(model.config).model_dump()
    config["text_encoder_args"]["num_hidden_layers"] = 12
    return type(model.config).model_validate(config | {"fusion_layer": 6})
