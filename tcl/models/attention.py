"""Attention as BERT's layers do it: to a text itself, or to the keys and values of a context.

`Tokens` are some tokens of a batch of texts, to compute on no others: the real ones rather than padding, and in a last
layer those whose state is used. Modules have BERT's names.

Shapes: B images, R texts (rows), S tokens of a text with padding, T of the R * S tokens, N image tokens, D width,
H heads, Dh head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.rows import take_rows


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
        return FirstTokens(torch.arange(0, rows * length, length, device=mask.device), rows, length)

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


class FirstTokens(Tokens):
    """[CLS] of every text. There is one of each, so they are spread to [R, 1, D]: attention has one query per text."""

    def spread(self, packed: Tensor) -> Tensor:
        return packed[:, None]

    def gather(self, grid: Tensor) -> Tensor:
        return grid[:, 0]


class KeyValue(NamedTuple):
    """What one cross-attention layer needs of the images; a function of the image alone, so it is computed once."""

    key: Tensor  # [B, H, N, Dh]
    value: Tensor  # [B, H, N, Dh]

    def select(self, rows: Tensor | slice) -> KeyValue:
        """The same for the images `rows`; those of a slice are not copied."""
        if isinstance(rows, slice):
            return KeyValue(self.key[rows], self.value[rows])
        # As they lie in memory, [B, N, H, Dh]: whole rows are copied then.
        return KeyValue(*(take_rows(part.transpose(1, 2), rows).transpose(1, 2) for part in self))


class ResidualOutput(nn.Module):
    """`LayerNorm(residual + dropout(dense(x)))`, the second half of every BERT sub-layer."""

    def __init__(self, in_width: int, width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.add(self.dense(x), residual)

    def add(self, projected: Tensor, residual: Tensor) -> Tensor:
        """What is left to do after `dense`."""
        return self.LayerNorm(self.dropout(projected) + residual)


class QueryKeyValue(nn.Module):
    """The three input projections of an attention layer."""

    def __init__(self, width: int, context_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)


class Attention(nn.Module):
    """Self-attention, or cross-attention when it is given the keys and values of a context."""

    def __init__(self, width: int, num_heads: int, context_width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.self = QueryKeyValue(width, context_width)
        self.output = ResidualOutput(width, width, dropout, eps)

    def _heads(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        grid = tokens.spread(x) if tokens else x
        return grid.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [., S, D] -> [., H, S, Dh]

    def key_value(self, context: Tensor, tokens: Tokens | None = None) -> KeyValue:
        """Keys and values of `context` [B, N, context_width], or of packed `tokens`."""
        return KeyValue(self._heads(self.self.key(context), tokens), self._heads(self.self.value(context), tokens))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, context: KeyValue | None = None, tokens: Tokens | None = None
    ) -> Tensor:
        """Attend from `x` [R, S, D] to itself, or to `context`.

        With a context of B images, R is a multiple of B and row r attends to image r % B. Rows of one image become one
        long query, so its keys and values are never copied.

        Args:
            mask: True = attend; [R, 1, 1 or S, S], or of the context [B, 1, 1, N].
            tokens: `x` is packed, and holds these only.
        """
        query = self._heads(self.self.query(x), tokens)  # [R, H, S, Dh]
        dropout = self.dropout if self.training else 0.0
        if context is None:
            own = self.key_value(x, tokens)
            attended = F.scaled_dot_product_attention(query, *own, attn_mask=mask, dropout_p=dropout)
        else:
            groups = (len(query) // len(context.key), len(context.key))  # captions of an image, images
            query = query.unflatten(0, groups).permute(1, 2, 0, 3, 4).flatten(2, 3)  # [B, H, (R/B) S, Dh]
            attended = F.scaled_dot_product_attention(query, *context, attn_mask=mask, dropout_p=dropout)
            attended = attended.unflatten(2, (groups[0], -1)).permute(2, 0, 1, 3, 4).flatten(0, 1)  # [R, H, S, Dh]
        attended = attended.transpose(1, 2).flatten(2)
        return self.output(tokens.gather(attended) if tokens else attended, x)
