"""AdamW, its two parameter groups, and what changes from step to step: learning rate and distillation weight."""

from __future__ import annotations

import math

import torch
from torch import nn

from tcl.config.recipe import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with the published groups: biases and one-dimensional parameters are not decayed, everything else is.

    That includes the temperature, the class token and all embeddings, which the published code decays too.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim == 1 or name.endswith(".bias")]
    decayed = [p for name, p in named if not (p.ndim == 1 or name.endswith(".bias"))]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}]
    return torch.optim.AdamW(groups, lr=config.warmup_lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(step: int, config: OptimConfig, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0."""
    if config.schedule == "published":
        return _published_learning_rate(step, config, steps_per_epoch, total_steps)
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    return _cosine((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), config)


def _published_learning_rate(step: int, config: OptimConfig, steps_per_epoch: int, total_steps: int) -> float:
    """The reference's stairs: in epoch 0 up once per 100 steps, from epoch 1 on a cosine that moves once per epoch."""
    epoch, i = divmod(step, steps_per_epoch)
    if epoch > 0:
        return _cosine(epoch / math.ceil(total_steps / steps_per_epoch), config)
    stairs, climbed = config.warmup_steps // 100, max(i - 1, 0) // 100
    return config.warmup_lr + (config.lr - config.warmup_lr) * climbed / stairs if climbed < stairs else config.lr


def _cosine(progress: float, config: OptimConfig) -> float:
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def distillation_weight(step: int, alpha: float, steps_per_epoch: int, ramp: bool = True) -> float:
    """`alpha`, with `ramp` growing linearly over the first epoch: an untrained teacher has nothing to teach."""
    return alpha * min(step / steps_per_epoch, 1.0) if ramp else alpha
