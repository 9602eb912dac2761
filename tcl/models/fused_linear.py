"""A cheap function and the linear layer after it as one operation, which keeps the input of the function alone.

Autograd would also keep what the function gave, the input of the linear layer. Computing that again in the backward
pass costs little beside the layer's matrix products, and is exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu_linear(x: Tensor, linear: nn.Module) -> Tensor:
    """`linear(gelu(x))`, with exact (erf) GELU."""
    if _keeps_for_backward(x, linear):
        return _GeluLinear.apply(x, linear.weight, linear.bias)
    return linear(F.gelu(x))


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Module) -> Tensor:
    """`linear(norm(x))`."""
    if _keeps_for_backward(x, linear):
        return _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias)
    return linear(norm(x))


def _keeps_for_backward(x: Tensor, linear: nn.Module) -> bool:
    # Adapted layers compute more than a product; compiled graphs choose by themselves what to compute again.
    plain = type(linear) is nn.Linear and linear.bias is not None
    return plain and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        of_input, of_weight, of_bias = _linear_gradients(gradient, F.gelu(x), weight, trained)
        return torch.ops.aten.gelu_backward(of_input.to(x.dtype), x), of_weight, of_bias


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, rstd, weight)
        ctx.eps = eps
        return F.linear(normed, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, rstd, weight = ctx.saved_tensors
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
        trained = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
        of_normed, of_weight, of_bias = _linear_gradients(gradient, normed, weight, trained)
        of_x, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
            of_normed.to(x.dtype), x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return of_x, of_norm_weight, of_norm_bias, None, of_weight, of_bias


def _linear_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, trained: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of input, weight and bias of a linear layer, multiplied in the precision of `gradient` as under autocast.

    Args:
        trained: weight or bias is; otherwise theirs are not computed.
    """
    of_input = gradient @ weight.to(gradient.dtype)
    if not trained:
        return of_input, None, None
    rows = gradient.flatten(0, -2)
    of_weight = rows.T @ x.flatten(0, -2).to(gradient.dtype)
    return of_input, of_weight.to(weight.dtype), rows.sum(dim=0).to(weight.dtype)
