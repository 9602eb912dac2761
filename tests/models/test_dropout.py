"""Dropout acts where the published model has it, at the rate of the recipe, and nowhere else.

To see it, a model is made in which everything that is dropped is the number 1: hidden states ahead of each norm, and
attended values, of which each attention weight then contributes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tcl.config.recipe import TrainConfig
from tcl.models.adapters import adapt
from tcl.models.attention import Attention, ResidualOutput, Tokens
from tcl.models.bert import Embeddings, Layer
from tcl.models.tcl import TCL
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.pretrain import PretrainLosses, PretrainObjective
from tcl.objective.sampling import MaskedTokens
from tests.chance import binomial, follows, is_rate
from tests.conftest import TINY, make_tiny_model

RATE = 0.3
WIDTH, IMAGE_TOKENS = 32, 17
ROWS, LENGTH, REAL = 24, 9, 7  # captions, their tokens with padding, those without
BASE = 8.0  # what the ones are added to: a residual is never dropped


class Drops(NamedTuple):
    """Of each token, or of each query in each head, how many numbers were dropped, out of how many."""

    dropped: Tensor
    out_of: Tensor


Seen = dict[str, list[Drops]]


def model_with_dropout(rate: float) -> TCL:
    return make_tiny_model(text_encoder_args=TINY["text_encoder_args"] | {"dropout": rate})


def watch(module: nn.Module, rate: float) -> Seen:
    """Make every dropout of a module visible, in place.

    Returns:
        By place, what later forward passes drop of `embeddings`, of `hidden` states and of `attention` weights.
    """
    seen: Seen = {}
    for name, part in module.named_modules():
        if isinstance(part, Embeddings):
            _constant(part.LayerNorm, 1.0)
            part.register_forward_hook(_states_of_base(seen.setdefault(f"{name} embeddings", []), rate))
        if isinstance(part, Layer):
            _constant(part.intermediate.dense, 0.0)
        if isinstance(part, ResidualOutput):
            _constant(part.dense, 1.0)
            _constant(part.LayerNorm, BASE)
            part.LayerNorm.register_forward_pre_hook(_sum(seen.setdefault(f"{name} hidden", []), rate))
        if isinstance(part, Attention):
            _constant(part.self.query, 0.0)
            for projection, value in (("key", 0.0), ("value", 1.0)):
                if hasattr(part.self, projection):
                    _constant(getattr(part.self, projection), value)
            _watch_attention(part, seen.setdefault(f"{name} attention", []), rate)
    return seen


def _constant(module: nn.Module, bias: float) -> None:
    nn.init.zeros_(module.weight)  # type: ignore[arg-type]
    nn.init.constant_(module.bias, bias)  # type: ignore[arg-type]


def _note(seen: list[Drops], left: Tensor, out_of: Tensor, rate: float) -> None:
    """Note what is `left` of `out_of` ones, each of which is 0 or 1 / (1 - rate) now, on average."""
    kept = left.detach() * out_of * (1 - rate)
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    seen.append(Drops((out_of - kept.round()).long().flatten(), out_of.expand(kept.shape).flatten()))


def _note_states(seen: list[Drops], states: Tensor, rate: float) -> None:
    kept = torch.isclose(states, torch.tensor(1 / (1 - rate)), rtol=1e-4)
    assert (kept | (states.abs() < 1e-4)).all()
    _note(seen, states.mean(-1), torch.tensor(states.shape[-1]), rate)


def _states_of_base(seen: list[Drops], rate: float) -> Callable[..., Tensor]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        _note_states(seen, output, rate)
        return torch.full_like(output, BASE)

    return hook


def _sum(seen: list[Drops], rate: float) -> Callable[..., None]:
    return lambda norm, inputs: _note_states(seen, inputs[0] - BASE, rate)


def _watch_attention(attention: Attention, seen: list[Drops], rate: float) -> None:
    keys: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x, mask, context, tokens = (*inputs, None, None, None)[:4]
        rows, length = (tokens.rows, tokens.length) if tokens else x.shape[:2]
        each = mask.sum(-1).squeeze(1) if mask is not None else torch.tensor([[context.key.shape[2]]])
        each = each.repeat(rows // len(each), 1).expand(rows, length)  # row r goes with context r % B
        keys.append(tokens.gather(each[..., None])[:, 0] if tokens else each)

    def attended(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        of_heads = inputs[0].unflatten(-1, (attention.num_heads, -1))[..., 0]  # the others of a head are the same
        _note(seen, of_heads, keys.pop()[..., None], rate)

    attention.register_forward_pre_hook(before)
    attention.output.register_forward_pre_hook(attended)


def check_drops(drops: list[Drops], rate: float, place: str) -> None:
    """Each element is dropped by itself, at the rate: the counts are binomial."""
    dropped, out_of = (torch.cat(parts) for parts in zip(*drops, strict=True))
    assert is_rate(float(dropped.sum()), int(out_of.sum()), rate), place
    for number in out_of.unique().tolist():
        counts = dropped[out_of == number].bincount(minlength=number + 1)
        if counts.sum() >= 100:
            assert follows(counts, binomial(number, rate)), place


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rate", [0.1, RATE])
def test_every_place_drops_each_element_by_itself(packed: bool, rate: float) -> None:
    """With and without padding, and in a last layer that computes [CLS] alone."""
    model = model_with_dropout(rate).train()
    seen = watch(model.text_encoder, rate)
    mask = (torch.arange(LENGTH) < REAL).repeat(ROWS, 1)
    tokens = Tokens.real(mask) if packed else None
    torch.manual_seed(0)
    with torch.no_grad():
        text = model.encode_text(torch.randint(5, 40, mask.shape), mask, tokens)
        images = model.image_key_values(model.encode_image(torch.zeros(ROWS // 2, 3, 32, 32)).image_embeds)
        for wanted in (None, Tokens.first(mask)):
            model.fuse(text.text_embeds, mask, images, tokens, wanted)

    expected = {"bert.embeddings embeddings": WIDTH}
    for number in range(4):
        layer = f"bert.encoder.layer.{number}"
        expected |= {f"{layer}.output hidden": WIDTH, f"{layer}.attention.output hidden": WIDTH}
        expected |= {f"{layer}.attention attention": REAL}
        if number >= 2:
            expected |= {
                f"{layer}.crossattention.output hidden": WIDTH,
                f"{layer}.crossattention attention": IMAGE_TOKENS,
            }
    assert seen.keys() == expected.keys()
    for place, drops in seen.items():
        passes = 2 if "layer.2" in place or "layer.3" in place else 1
        assert len(drops) == passes and len(drops[0].dropped) >= ROWS * REAL, place
        assert all((of_pass.out_of == expected[place]).all() for of_pass in drops), place
        check_drops(drops, rate, place)


def build(rate: float = RATE) -> PretrainObjective:
    """Student and teacher have the same weights, so that nothing but what is drawn tells them apart."""
    model = model_with_dropout(rate)
    torch.manual_seed(3)
    return PretrainObjective(model, MomentumTeacher(model), FeatureQueue(16, 5)).train()


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    ids = torch.randint(5, 40, mask.shape, generator=generator)
    view = torch.randint(256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    positions = torch.tensor([1, 8, 16])
    return {
        "images": view,
        "images_aug": view,
        "input_ids": ids,
        "attention_mask": mask,
        "masked": MaskedTokens(
            ids.flatten().index_fill(0, positions, 4).view_as(ids), positions, ids.flatten()[positions]
        ),
        "alpha": 0.4,
        "negatives": (torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])),
    }


@torch.no_grad()
def test_a_text_and_its_twin_differ_in_training_and_an_image_does_not() -> None:
    """IMC of texts contrasts two dropouts of one caption: the model's, and the teacher's. No ViT drops anything."""
    objective, inputs = build(), batch()
    student, teacher = objective.model, objective.teacher.model
    ids, mask, view = (inputs[name] for name in ("input_ids", "attention_mask", "images"))
    _, images, texts = objective(**inputs)
    _, images_again, texts_again = objective(**inputs)
    assert torch.equal(images, images_again) and not torch.isclose(texts, texts_again).all(dim=1).any()
    own = student.encode_text(ids, mask).text_feat
    assert not torch.isclose(own, teacher.encode_text(ids, mask).text_feat).all(dim=1).any()
    in_training = [net.encode_image(view).image_embeds for net in (student, student, teacher)]
    assert all(torch.equal(embeds, student.eval().encode_image(view).image_embeds) for embeds in in_training)


@torch.no_grad()
def test_evaluation_drops_nothing() -> None:
    objective, inputs = build().eval(), batch()
    assert torch.equal(*(objective(**inputs)[0].total for _ in range(2)))
    seen = watch(objective, rate=0.0)  # would not find the ones where some were dropped
    objective(**inputs)
    assert len(seen) == 2 * (1 + 4 * 3 + 2 * 2)  # student and teacher: embeddings, layers, cross-attention
    assert all(drops and not any(of_pass.dropped.any() for of_pass in drops) for drops in seen.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_meets_the_dropout_of_the_forward_pass(checkpointing: bool) -> None:
    """Also where it computes again what was not kept: gradients are the slopes of the loss under the same draws."""
    objective, inputs = build(), batch()
    adapt(objective.model, TrainConfig(activation_checkpointing=checkpointing))

    def loss() -> Tensor:
        torch.manual_seed(1)
        losses: PretrainLosses = objective(**inputs)[0]
        return losses.total

    loss().backward()
    generator = torch.Generator().manual_seed(2)
    for parts in ("visual_encoder", "text_encoder.bert.encoder.layer.0", "text_encoder.bert.encoder.layer.3"):
        weights = [parameter for name, parameter in objective.model.named_parameters() if name.startswith(parts)]
        steps = [torch.randn(weight.shape, generator=generator) for weight in weights]
        slope = sum((weight.grad * step).sum() for weight, step in zip(weights, steps, strict=True))
        ends = []
        with torch.no_grad():
            for size in (1e-3, -2e-3):
                torch._foreach_add_(weights, steps, alpha=size)
                ends.append(loss())
            torch._foreach_add_(weights, steps, alpha=1e-3)
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-3, slope, rtol=2e-2, atol=2e-3)
