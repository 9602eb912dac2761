"""Figures of a step that show how the features fare. They stay on the device: nothing here waits for it."""

from __future__ import annotations

import torch
from torch import Tensor

SAME = 0.999  # cosine from which two features count as those of the same input


@torch.no_grad()
def feature_spread(features: Tensor) -> Tensor:
    """How far L2-normalised features differ from each other.

    The standard deviation over the batch, averaged over the dimensions, times sqrt(E): 1 for random unit vectors, 0
    when all features are the same. A batch of one has no deviation and counts as spread.

    Args:
        features: [B, E].

    Returns:
        scalar, float32.
    """
    size, width = features.shape
    if size == 1:
        return features.new_ones((), dtype=torch.float32)
    return features.float().std(dim=0).mean() * width**0.5


@torch.no_grad()
def duplicate_share(features: Tensor, queue: Tensor) -> Tensor:
    """Share of the queued negatives that are the sample's own feature over again, averaged over the batch.

    Args:
        features: L2-normalised [B, E]; of the teacher, whose features the queue holds.
        queue: L2-normalised columns [E, Q], as they were before this batch was added.

    Returns:
        scalar in [0, 1], float32.
    """
    return (features.float() @ queue.float() > SAME).float().mean()
