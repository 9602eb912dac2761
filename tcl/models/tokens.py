"""Computing on some tokens of a batch of texts: on real ones rather than padding, and in a last layer on those whose
state is used.

Letters: R texts, S tokens each with padding, T of the R * S tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Some tokens of R texts; their states are packed into [T, D]."""

    positions: Tensor  # r * S + s, ascending, int64 [T]
    rows: int  # R
    length: int  # S

    @classmethod
    def real(cls, mask: Tensor) -> Tokens | None:
        """The tokens that are no padding under a mask, bool [R, S].

        None, which stands for all tokens, where there is no padding, and on a GPU: how many there are would have to be
        waited for.
        """
        if mask.device.type != "cpu" or bool(mask.all()):
            return None
        return cls(mask.flatten().nonzero().squeeze(1), *mask.shape)

    @classmethod
    def first(cls, mask: Tensor) -> Tokens:
        """[CLS] of every text."""
        rows, length = mask.shape
        return cls(torch.arange(0, rows * length, length, device=mask.device), rows, length)

    def spread(self, packed: Tensor) -> Tensor:
        """States [T, D] at their places [R, S, D], zeros between them."""
        grid = packed.new_zeros(self.rows * self.length, packed.shape[-1])
        return grid.index_copy(0, self.positions, packed).unflatten(0, (self.rows, self.length))

    def gather(self, grid: Tensor) -> Tensor:
        """The states of these tokens [T, D] among [R, S, D]."""
        return grid.flatten(0, 1).index_select(0, self.positions)

    def select(self, states: Tensor, tokens: Tokens | None) -> Tensor:
        """The states of these tokens among packed ones of more `tokens`, or among all [R, S, D]."""
        if tokens is None:
            return self.gather(states)
        return states.index_select(0, torch.searchsorted(tokens.positions, self.positions))
