"""What the objective draws at random, and the pooling of patches. Each draw takes a `generator`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskedTokens(NamedTuple):
    """Captions with words to predict. M is the number of them."""

    input_ids: Tensor  # [B, S], masked
    positions: Tensor  # [M], flat positions b * S + s
    labels: Tensor  # [M], the words that were there


def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    cls_id: int,
    mask_id: int,
    vocab_size: int,
    probability: float,
    generator: torch.Generator,
) -> MaskedTokens:
    """Choose words to predict, as published: 80 % become [MASK], 10 % any word of the vocabulary, 10 % stay.

    Padding and [CLS] are never chosen; [SEP] and [UNK] may be. Runs where the generator is, so keep both on the CPU:
    the number of masked positions is then known without waiting for a device.

    Args:
        input_ids: int64 [B, S].
        attention_mask: bool [B, S].
    """
    draws = torch.rand(3, *input_ids.shape, generator=generator)
    words = torch.randint(vocab_size, input_ids.shape, generator=generator)
    chosen = (draws[0] < probability) & attention_mask & (input_ids != cls_id)
    as_mask = chosen & (draws[1] < 0.8)
    as_word = chosen & ~as_mask & (draws[2] < 0.5)
    masked = torch.where(as_word, words, input_ids).masked_fill(as_mask, mask_id)
    positions = chosen.flatten().nonzero().squeeze(1)
    return MaskedTokens(masked, positions, input_ids.flatten()[positions])


@torch.no_grad()
def negative_weights(sim: Tensor) -> Tensor:
    """How likely each other sample is to be drawn as hard negative: softmax of the similarities without the own one.

    Args:
        sim: in-batch similarities, divided by the temperature [B, B]; B >= 2.

    Returns:
        [B, B], diagonal 0, rows sum to 1.
    """
    # Excluded before the softmax, so a row cannot underflow to zero where the own pair takes all the mass.
    own = torch.eye(len(sim), dtype=torch.bool, device=sim.device)
    return sim.float().masked_fill(own, float("-inf")).softmax(dim=-1)


def sample_negatives(sim: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One hard negative for each row of `sim` [B, B], by `negative_weights`: indices [B], never the row's own."""
    return draw_by_weight(negative_weights(sim), generator)[:, 0]


def draw_by_weight(weights: Tensor, generator: torch.Generator | None = None, count: int = 1) -> Tensor:
    """Columns of each row, drawn by its weights and without replacement, in the order of the draws.

    The first arrivals of exponential ones at these rates are the same draw as `torch.multinomial`, which makes the host
    wait for the device, and raises on what is not finite ahead of the check that names the samples.

    Args:
        weights: rates, not negative [B, K].
        generator: on their device.
        count: how many; at most K.

    Returns:
        int64 [B, count].
    """
    arrivals = weights / torch.empty_like(weights).exponential_(generator=generator)
    return arrivals.topk(count).indices


def pool_patches(patches: Tensor, grid_size: tuple[int, int], cells: tuple[int, int] | None = None) -> Tensor:
    """Average neighbouring patches for LMI.

    A side of n patches becomes int(sqrt(n)) cells of n // int(sqrt(n)) patches each: 16x16 gives 4x4 as published, and
    every other size works too. Patches left over at the far edge belong to no cell, as in the published code at 288
    pixels.

    Args:
        patches: [B, rows * columns, E].
        grid_size: patches (rows, columns).
        cells: (rows, columns) rather than those; fewer where a side has fewer patches.

    Returns:
        [B, cells, E], not normalised again.
    """
    cells = cells or (int(grid_size[0] ** 0.5), int(grid_size[1] ** 0.5))
    window = [max(side // count, 1) for side, count in zip(grid_size, cells, strict=True)]
    grid = patches.transpose(1, 2).unflatten(2, grid_size)
    return F.avg_pool2d(grid, window)[:, :, : cells[0], : cells[1]].flatten(2).transpose(1, 2)
