"""What a recipe asks of a model before it is trained: frozen and low-rank parts, checkpointed and compiled layers.

None of it changes a parameter's name, or what the model computes before its first update.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcl.config.recipe import Part, TrainConfig
from tcl.errors import ConfigError
from tcl.models.bert import Layer
from tcl.models.lora import add_lora
from tcl.models.tcl import TCL

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


def model_parts(model: TCL) -> dict[Part, list[nn.Module]]:
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
