"""Low-rank adaptation (LoRA, Hu et al. 2022) of linear layers, in place: `W + B A` with W frozen and A, B trained.

An adapted model keeps all parameter names and has two more per layer, `lora_a` and `lora_b`. Saved models are merged:
plain weights under the usual names, which everything that reads a model can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from tcl.errors import ConfigError


class LoraLinear(nn.Linear):
    """`x W^T + b + (x A^T) B^T`. The scale alpha / rank of the update is 1, alpha being the rank.

    Attributes:
        lora_a: A [rank, in].
        lora_b: B [out, rank].
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    @property
    def base(self) -> Tensor:
        """The frozen weight W [out, in]; the parameter that is called `weight`."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in effect, `W + B A` [out, in]; some encoders read it rather than call the layer."""
        return self.base + self.lora_b @ self.lora_a

    def forward(self, x: Tensor) -> Tensor:
        # Not by `weight`: backward would then need a matrix of its size for each layer.
        return F.linear(x, self.base, self.bias) + F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(part: nn.Module, rank: int, name: str = "the model") -> None:
    """Freeze `part`, and give each of its linear layers an update of this rank; outputs stay as they are at first.

    Args:
        part: an encoder, or a layer of one.
        rank: of the updates.
        name: of the part, for the message.

    Raises:
        ConfigError: a layer is narrower than the rank.
    """
    part.requires_grad_(False)
    for linear in [module for module in part.modules() if type(module) is nn.Linear]:
        narrow = min(linear.in_features, linear.out_features)
        if rank > narrow:
            raise ConfigError(
                f"train.lora_rank: {rank} is more than the full rank {narrow} of a layer of {name}",
                hint=f"give at most {narrow}; 4 to 64 is usual",
            )
        weight = linear.weight
        linear.__class__ = LoraLinear  # in place, as for the image encoder: names and references stay valid
        linear.lora_a = nn.Parameter(weight.new_empty(rank, linear.in_features))
        linear.lora_b = nn.Parameter(weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(linear.lora_a, a=math.sqrt(5))


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` with all updates merged into the weights: the names and shapes of a model without LoRA."""
    state = model.state_dict()
    for prefix, layer in _adapted(model):
        state[prefix + "weight"] = layer.weight.detach()
        del state[prefix + "lora_a"], state[prefix + "lora_b"]
    return state


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What merging loses: W, A and B of every adapted layer; empty without LoRA.

    `model.load_state_dict(merged | lora)` restores an adapted model bit for bit.
    """
    return {
        prefix + name: tensor.detach()
        for prefix, layer in _adapted(model)
        for name, tensor in (("weight", layer.base), ("lora_a", layer.lora_a), ("lora_b", layer.lora_b))
    }


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}." if name else "", module
