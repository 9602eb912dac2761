"""What a recipe asks of a model before it is trained: frozen and low-rank parts, checkpointed and compiled layers.

None of it changes a parameter's name, or what the model computes before its first update.

Low-rank adaptation (LoRA, Hu et al. 2022) is done in place: a linear layer computes `W + B A`, with W frozen and A, B
trained, and has two more parameters, `lora_a` and `lora_b`. Saved models are merged: plain weights under the usual
names, which everything that reads a model can read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcl.config.recipe import EncoderName, TrainConfig
from tcl.errors import ConfigError
from tcl.models.bert import Layer
from tcl.models.tcl import TCL


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


# Variants of a layer that torch may compile. Each encoder exists with and without gradient, in training and in
# evaluation, for one and for several rows per image; torch stops compiling at 8, and says so only once.
COMPILED_VARIANTS = 64


def adapt(model: TCL, config: TrainConfig) -> None:
    """Apply `freeze`, `lora`, `activation_checkpointing` and `compile`, in place.

    The order in a run: build the model, load weights, `adapt`, then the teacher (a copy: it gets the low-rank parts
    too), then the optimizer (it takes what requires a gradient). Copies are not compiled: `compile_layers(teacher)`.

    Raises:
        ConfigError: `lora_rank` is more than a layer has.
    """
    parts = model_parts(model)
    for name in config.freeze:
        for module in parts[name]:
            module.requires_grad_(False)
    for name in config.lora:
        for module in parts[name]:
            add_lora(module, config.lora_rank, name)
    if config.activation_checkpointing:
        checkpoint_layers(model)
    if config.compile:
        compile_layers(model)


def model_parts(model: TCL) -> dict[EncoderName, list[nn.Module]]:
    """The modules of each encoder. In none of them, and so always trained: projections, ITM and MLM head, temperature.

    The output matrix of the MLM head is the word embedding table, which belongs to the text encoder.
    """
    bert = model.text_encoder.bert
    text, fusion = bert.encoder.layer[: bert.fusion_layer], bert.encoder.layer[bert.fusion_layer :]
    return {
        "image_encoder": [model.visual_encoder],
        "text_encoder": [bert.embeddings, *text],
        "fusion_encoder": [*fusion],
    }


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of the image encoder, and all BERT layers."""
    blocks = [block for module in model.modules() for block in getattr(module, "blocks", [])]
    return [*blocks, *(module for module in model.modules() if isinstance(module, Layer))]


class Checkpointed(nn.Module):
    """Mixed into a layer: in training, only its inputs are kept, and backward computes the rest again.

    Dropout draws the same again. Not in evaluation and not without gradient, where nothing is kept anyway.
    """

    def forward(self, *inputs: Any) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return checkpoint(super().forward, *inputs, use_reentrant=False)
        return super().forward(*inputs)


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (Checkpointed, kind), {})


def checkpoint_layers(model: nn.Module) -> None:
    """Keep one input per transformer layer in training rather than all its activations, for a second forward pass."""
    for layer in transformer_layers(model):
        if not isinstance(layer, Checkpointed):
            # A class, so that the teacher's copy runs its own layers; one per kind, so that a kind is compiled once.
            layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]


def compile_layers(model: nn.Module) -> None:
    """Compile each transformer layer by itself, in place; layers of one kind share their code.

    Text is compiled for any number of rows and any length at once, so that no caption length costs a compilation.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for layer in transformer_layers(model):
        layer.compile(dynamic=True if isinstance(layer, Layer) else None)


def check_same_adaptation(config: TrainConfig, saved: Mapping[str, Any], checkpoint: Path) -> None:
    """A run goes on with the parameters it was started with.

    Args:
        config: of the run that is about to continue.
        saved: section `train` of the checkpoint's recipe.
        checkpoint: for the message.

    Raises:
        ConfigError: other parts are trained now, or by other ranks.
    """
    given, started = config.model_dump(), {**TrainConfig().model_dump(), **saved}
    for name in ("freeze", "lora", "lora_rank") if config.lora else ("freeze", "lora"):
        now, before = _written(given[name]), _written(started[name])
        if now != before:
            raise ConfigError(
                f"train.{name} is {now}, but the run of {checkpoint} was started with {before}",
                hint=f"resume with 'train.{name}={before}', or start a new run from it with --init",
            )


def _written(value: Any) -> str:
    """As in a recipe; a list is a set here."""
    return f"[{', '.join(sorted(value))}]" if isinstance(value, list) else str(value)
