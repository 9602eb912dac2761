"""LoRA: nothing changes at first, only the low-rank factors are trained, and what is saved is an ordinary model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl import TCL
from tcl.config.recipe import OptimConfig, TrainConfig
from tcl.errors import ConfigError
from tcl.models.adapters import LoraLinear, adapt, add_lora, lora_state_dict, merged_state_dict, model_parts
from tcl.objective.momentum import MomentumTeacher
from tcl.training.optim import build_optimizer
from tests.conftest import make_tiny_model
from tests.models.test_adapt import whole_loss

CONFIG = TrainConfig(lora=["image_encoder", "text_encoder", "fusion_encoder"], lora_rank=2)


def adapted_model(moved: bool = True) -> TCL:
    """A tiny model with LoRA everywhere; `moved` by an update of every low-rank factor."""
    model = make_tiny_model()
    adapt(model, CONFIG)
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def outputs(model: TCL) -> dict[str, Tensor]:
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = model.encode_image(pixels)
    text = model.encode_text(*model.processor.texts(["a red circle", "a dog on the grass near a house"]))
    logits = model.text_encoder.mlm_logits(text.text_embeds)
    return {"image": image.image_feat, "text": text.text_feat, "match": model.match(image, text), "mlm": logits}


def test_nothing_changes_before_the_first_update() -> None:
    expected = outputs(make_tiny_model())
    for name, value in outputs(adapted_model(moved=False)).items():
        assert torch.equal(value, expected[name]), name


def test_every_linear_layer_of_the_encoders_is_adapted_and_only_that_is_trained() -> None:
    model = adapted_model()
    for part, modules in model_parts(model).items():
        layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
        assert layers and all(isinstance(layer, LoraLinear) for layer in layers), part
        trained = {n for module in modules for n, p in module.named_parameters() if p.requires_grad}
        assert trained and all(name.endswith(("lora_a", "lora_b")) for name in trained), part
    assert not any(isinstance(head, LoraLinear) for head in (model.vision_proj, model.text_proj, model.itm_head))


def test_training_moves_the_factors_and_not_the_weights() -> None:
    model = adapted_model(moved=False).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(warmup_lr=0.01))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
    for _ in range(2):  # A moves from the second step on, for B is zero in the first
        whole_loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != torch.equal(parameter, before[name]), name


def test_the_gradient_of_the_factors_is_that_of_the_weight() -> None:
    """dL/dB = dL/dW A^T and dL/dA = B^T dL/dW, whether the layer is called or its weight is read."""
    torch.manual_seed(0)
    plain, x = nn.Linear(6, 4), torch.randn(5, 6)
    lora = nn.Linear(6, 4)
    lora.load_state_dict(plain.state_dict())
    add_lora(lora, rank=2)
    nn.init.normal_(lora.lora_b)
    with torch.no_grad():
        plain.weight.add_(lora.lora_b @ lora.lora_a)
    plain(x).square().sum().backward()
    for output in (lora(x), F.linear(x, lora.weight, lora.bias)):
        lora.lora_a.grad = lora.lora_b.grad = None
        output.square().sum().backward()
        torch.testing.assert_close(lora.lora_b.grad, plain.weight.grad @ lora.lora_a.T)
        torch.testing.assert_close(lora.lora_a.grad, lora.lora_b.T @ plain.weight.grad)


def test_a_saved_model_is_an_ordinary_one(tmp_path: Path) -> None:
    model = adapted_model()
    model.save_pretrained(tmp_path / "model")
    loaded = TCL.from_pretrained(tmp_path / "model")
    assert not any(isinstance(module, LoraLinear) for module in loaded.modules())
    assert list(loaded.state_dict()) == list(make_tiny_model().state_dict())
    assert loaded.model_hash == model.model_hash != make_tiny_model().model_hash
    expected, plain = outputs(model), outputs(make_tiny_model())
    for name, value in outputs(loaded).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(value, plain[name], atol=1e-3), name


def test_merging_leaves_the_model_as_it_is() -> None:
    model = adapted_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged_state_dict(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_plain_model_has_nothing_to_merge(tiny_model: TCL) -> None:
    assert lora_state_dict(tiny_model) == {}
    merged, plain = merged_state_dict(tiny_model), tiny_model.state_dict()
    assert list(merged) == list(plain) and all(torch.equal(merged[name], plain[name]) for name in plain)


def test_training_state_restores_bit_for_bit() -> None:
    model, other = adapted_model(), adapted_model(moved=False)
    saved = merged_state_dict(model) | lora_state_dict(model)
    other.load_state_dict({name: tensor.clone() for name, tensor in saved.items()})
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_the_teacher_follows_the_factors() -> None:
    model = adapted_model(moved=False)
    teacher = MomentumTeacher(model)
    model.load_state_dict(adapted_model().state_dict())
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    teacher.update(model, 0.9)
    online = dict(model.named_parameters())
    assert any(name.endswith("lora_b") for name in before)
    for name, average in teacher.model.named_parameters():
        assert average is not online[name] or not average.requires_grad
        torch.testing.assert_close(average, 0.9 * before[name] + 0.1 * online[name])
        assert torch.equal(average, before[name]) or "lora_" in name, name


def test_a_rank_beyond_the_width_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"train.lora_rank: 33 is more than the full rank 32 .* image_encoder"
    ) as error:
        adapt(make_tiny_model(), TrainConfig(lora=["image_encoder"], lora_rank=33))
    assert "at most 32" in str(error.value.hint)
