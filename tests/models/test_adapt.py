"""Frozen, checkpointed and compiled models: the same losses and gradients, with less to train or to keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tcl.config.recipe import EncoderName, TrainConfig
from tcl.errors import ConfigError
from tcl.models.adapters import adapt, check_same_adaptation, compile_layers, model_parts, transformer_layers
from tcl.models.tcl import TCL
from tests.conftest import TINY, make_tiny_model

PARTS: list[EncoderName] = ["image_encoder", "text_encoder", "fusion_encoder"]


def whole_loss(model: TCL, size: int = 4, length: int = 9) -> Tensor:
    """A scalar in which every weight has a part: features, temperature, ITM and MLM, three texts per image and one."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    input_ids = torch.randint(5, 40, (size, length), generator=generator)
    mask = torch.arange(length) < torch.randint(2, length + 1, (size, 1), generator=generator)
    image, text = model.encode_image(pixels), model.encode_text(input_ids, mask)
    images = model.image_key_values(image.image_embeds)
    of_three = model.fuse(text.text_embeds.repeat(3, 1, 1), mask.repeat(3, 1), images)
    of_one = model.fuse(text.text_embeds, mask, [layer.select(torch.arange(size).flip(0)) for layer in images])
    contrast = (image.image_feat @ text.text_feat.T / model.temp).logsumexp(dim=1).mean()
    itm = model.itm_head(torch.cat([of_three, of_one])[:, 0]).log_softmax(dim=1)[:, 1].mean()
    return contrast - itm + model.text_encoder.mlm_logits(of_three[:size, 1]).logsumexp(dim=1).mean()


def loss_and_gradients(model: TCL, **shape: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.train().zero_grad()
    torch.manual_seed(0)  # of dropout
    loss = whole_loss(model, **shape)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def saved_bytes(model: TCL) -> int:
    """What the forward pass keeps for the backward pass, weights excluded."""
    weights = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = whole_loss(model.train())
    del loss
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_changes_no_loss_and_no_gradient(dropout: float) -> None:
    changes = {"text_encoder_args": TINY["text_encoder_args"] | {"dropout": dropout}}
    plain, checkpointed = make_tiny_model(**changes), make_tiny_model(**changes)
    adapt(checkpointed, TrainConfig(activation_checkpointing=True))
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    expected_loss, expected = loss_and_gradients(plain)
    loss, gradients = loss_and_gradients(checkpointed)
    assert torch.equal(loss, expected_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-6)


def test_checkpointing_keeps_less_and_nothing_twice() -> None:
    model = make_tiny_model()
    plain = saved_bytes(model)
    adapt(model, TrainConfig(activation_checkpointing=True))
    once = saved_bytes(model)
    assert once < plain / 3
    adapt(model, TrainConfig(activation_checkpointing=True))
    assert saved_bytes(model) == once


def test_checkpointing_runs_each_layer_twice_in_training_and_once_elsewhere() -> None:
    model = make_tiny_model()
    adapt(model, TrainConfig(activation_checkpointing=True))
    calls: list[nn.Module] = []
    for layer in transformer_layers(model):
        # Within the layer: the part that is computed again.
        inner = next(module for module in layer.modules() if isinstance(module, nn.Linear))
        inner.register_forward_hook(lambda module, inputs, output: calls.append(module))
    with torch.no_grad():
        whole_loss(model.train())
    without = len(calls)
    whole_loss(model.eval()).backward()
    assert len(calls) == 2 * without
    whole_loss(model.train()).backward()
    assert len(calls) == 4 * without


def test_a_copy_of_a_checkpointed_model_is_its_own() -> None:
    """The teacher is a copy."""
    model = make_tiny_model()
    adapt(model, TrainConfig(activation_checkpointing=True))
    expected = whole_loss(model.eval())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(whole_loss(twin), expected)


@pytest.mark.parametrize("freeze", [[part] for part in PARTS] + [PARTS])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_parts_get_no_gradient_and_all_others_do(freeze: list[EncoderName], checkpointing: bool) -> None:
    """Training on several devices waits for the gradient of every trained weight."""
    model = make_tiny_model()
    adapt(model, TrainConfig(freeze=freeze, activation_checkpointing=checkpointing))
    parts = model_parts(model)
    frozen = {id(p) for name in freeze for module in parts[name] for p in module.parameters()}
    assert frozen
    expected = loss_and_gradients(make_tiny_model())[1]
    for name, gradient in loss_and_gradients(model)[1].items():
        parameter = model.get_parameter(name)
        assert parameter.requires_grad == (gradient is not None) == (id(parameter) not in frozen), name
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [[part] for part in PARTS])
def test_low_rank_parts_leave_no_trained_weight_without_gradient(lora: list[EncoderName]) -> None:
    model = make_tiny_model()
    freeze: list[EncoderName] = [part for part in PARTS if part not in lora]
    adapt(model, TrainConfig(lora=lora, freeze=freeze, lora_rank=2, activation_checkpointing=True))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, gradient in loss_and_gradients(model)[1].items() if gradient is not None}
    assert trained == with_gradient and any(name.endswith("lora_a") for name in trained)


def test_the_parts_are_disjoint_and_leave_only_heads() -> None:
    model = make_tiny_model()
    of_parts = [id(p) for modules in model_parts(model).values() for module in modules for p in module.parameters()]
    assert len(of_parts) == len(set(of_parts))
    rest = {name.split(".")[0] for name, p in model.named_parameters() if id(p) not in of_parts}
    assert rest == {"vision_proj", "text_proj", "itm_head", "temp", "text_encoder"}
    assert all(id(p) not in of_parts for p in model.text_encoder.cls.parameters())


def test_a_frozen_image_encoder_keeps_no_activations() -> None:
    model = make_tiny_model()
    plain = saved_bytes(model)
    adapt(model, TrainConfig(freeze=["image_encoder"]))
    kept = saved_bytes(model)
    assert kept < plain
    adapt(model, TrainConfig(freeze=PARTS))
    assert saved_bytes(model) < kept / 10


def test_resuming_with_other_trained_parts_is_refused() -> None:
    config = TrainConfig(lora=["text_encoder"], lora_rank=4)
    place = Path("runs/a/checkpoints/step-00000010")
    check_same_adaptation(config, config.model_dump(), place)
    check_same_adaptation(TrainConfig(), {}, place)  # of a version that had no such settings
    check_same_adaptation(TrainConfig(lora_rank=2), TrainConfig().model_dump(), place)  # says nothing without lora
    changes: list[dict[str, Any]] = [{"lora": []}, {"lora_rank": 8}, {"freeze": ["image_encoder"]}]
    for change in changes:
        name = next(iter(change))
        with pytest.raises(ConfigError, match=rf"train.{name} is .*step-00000010 was started with") as error:
            check_same_adaptation(config.model_copy(update=change), config.model_dump(), place)
        before = {"lora": "[text_encoder]", "lora_rank": "4", "freeze": "[]"}[name]
        assert f"'train.{name}={before}'" in str(error.value.hint)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own use of deprecated functions
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_give_the_same_and_compile_once_for_all_lengths(checkpointing: bool) -> None:
    torch._dynamo.reset()
    changes = {"text_encoder_args": TINY["text_encoder_args"] | {"dropout": 0.0}}  # compiled dropout draws differently
    plain, compiled = make_tiny_model(**changes), make_tiny_model(**changes)
    adapt(compiled, TrainConfig(compile=True, activation_checkpointing=checkpointing))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    teacher = copy.deepcopy(compiled).requires_grad_(False)
    compile_layers(teacher)
    frames = []
    for length in (9, 12, 5, 20):
        expected_loss, expected = loss_and_gradients(plain, length=length)
        loss, gradients = loss_and_gradients(compiled, length=length)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(whole_loss(teacher, length=length), expected_loss, rtol=1e-5, atol=1e-5)
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert frames[0] > 0 and len(set(frames)) == 1, frames
