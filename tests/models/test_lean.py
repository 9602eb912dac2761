"""Operations that keep less for the backward pass give the plain values and gradients, and keep less."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.fused_linear import gelu_linear, norm_linear


class Scaled(nn.Linear):
    """Stands for an adapted layer, which computes more than a product."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def operations(linear: nn.Module) -> list[tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    norm = nn.LayerNorm(6, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return [
        (linear, lambda x: gelu_linear(x, linear), lambda x: linear(F.gelu(x))),
        (nn.ModuleList([norm, linear]), lambda x: norm_linear(x, norm, linear), lambda x: linear(norm(x))),
    ]


@pytest.mark.parametrize("kind", [nn.Linear, Scaled, partial(nn.Linear, bias=False)])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("trained", ["x weight bias", "x", "weight", "x bias"])
@pytest.mark.parametrize("autocast", [False, True])
def test_values_and_gradients_are_the_plain_ones(
    kind: Callable[..., nn.Linear], number: int, trained: str, autocast: bool
) -> None:
    """Whichever are trained of what goes in, the weights and the biases."""
    torch.manual_seed(0)
    module, lean, plain = operations(kind(6, 5))[number]
    inputs = [("x", x := torch.randn(3, 4, 6)), *module.named_parameters()]
    wanted = [tensor.requires_grad_(name.rpartition(".")[2] in trained.split()) for name, tensor in inputs]
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    results = []
    for function in (lean, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = function(x)
        results.append([result, *torch.autograd.grad(result.float().square().sum(), wanted)])
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if autocast else {"rtol": 1e-5, "atol": 1e-5}
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("number", [0, 1])
def test_what_the_function_gave_is_not_kept(number: int) -> None:
    _, lean, plain = operations(nn.Linear(6, 5))[number]
    kept = []
    for function in (lean, plain):
        shapes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=shapes: seen.append(t.numel()) or t, lambda t: t):
            function(torch.randn(50, 6, requires_grad=True))
        kept.append(shapes.count(300))
    assert kept == [1, 2]


def test_without_gradients_nothing_is_kept() -> None:
    linear = nn.Linear(6, 5)
    with torch.no_grad():
        assert not gelu_linear(torch.randn(2, 6), linear).requires_grad
