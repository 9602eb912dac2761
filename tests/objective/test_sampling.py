"""Draws and pooling: what is never chosen, how often the rest is, and any size. More of negatives: test_negatives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl.objective.sampling import mask_tokens, negative_weights, pool_patches, sample_negatives
from tests.chance import follows, is_rate

PAD, UNK, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 4, 50


def draw(input_ids: torch.Tensor, attention_mask: torch.Tensor, probability: float, seed: int):
    return mask_tokens(
        input_ids,
        attention_mask,
        cls_id=CLS,
        mask_id=MASK,
        vocab_size=VOCAB,
        probability=probability,
        generator=torch.Generator().manual_seed(seed),
    )


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 6), length=st.integers(1, 9), probability=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_masking_spares_padding_and_cls(size: int, length: int, probability: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (size,), generator=generator)
    attention_mask = torch.arange(length) < lengths[:, None]
    input_ids = torch.randint(5, VOCAB, (size, length), generator=generator).masked_fill(~attention_mask, 0)
    input_ids[:, 0] = CLS
    masked = draw(input_ids, attention_mask, probability, seed)

    chosen = torch.zeros(size * length, dtype=torch.bool)
    chosen[masked.positions] = True
    chosen = chosen.view(size, length)
    assert not (chosen & ~attention_mask).any() and not chosen[:, 0].any()
    assert torch.equal(masked.labels, input_ids.flatten()[masked.positions]) and masked.positions.ndim == 1
    assert torch.equal(masked.input_ids[~chosen], input_ids[~chosen])


def test_masking_is_drawn_as_published() -> None:
    """[SEP] and [UNK] are chosen like any word; 80 % of what is chosen becomes [MASK], 10 % any word of all."""
    row = torch.tensor([CLS, UNK, SEP, 30, 41, PAD, PAD]).repeat(40_000, 1)
    masked = draw(row, row != PAD, 0.15, seed=0)
    chosen = torch.zeros(row.shape, dtype=torch.bool).flatten().index_fill(0, masked.positions, True).view_as(row)
    assert not chosen[:, [0, 5, 6]].any()
    for place in (1, 2, 3, 4):
        assert is_rate(int(chosen[:, place].sum()), len(row), 0.15)
        word = int(row[0, place])
        becomes = torch.full((VOCAB,), 0.1 / VOCAB)
        becomes[MASK] += 0.8
        becomes[word] += 0.1
        words = masked.input_ids[chosen[:, place], place].bincount(minlength=VOCAB)
        assert words.all() and follows(words, becomes), word
    # Whether one word is chosen says nothing about its neighbour.
    both = 2 * chosen[:, 3].long() + chosen[:, 4]
    assert follows(both.bincount(minlength=4), torch.tensor([0.85 * 0.85, 0.85 * 0.15, 0.15 * 0.85, 0.15 * 0.15]))


def test_masking_depends_on_the_generator_alone() -> None:
    input_ids = torch.full((4, 9), 30)
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    first, second = draw(input_ids, mask, 0.5, seed=3), draw(input_ids, mask, 0.5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 9), scale=st.floats(0.1, 1000), seed=st.integers(0, 2**31))
def test_a_hard_negative_is_never_the_own_sample(size: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # The own pair takes all the mass: what is left underflows unless it is excluded before the softmax.
    sim = torch.randn(size, size, generator=generator) + scale * torch.eye(size)
    weights = negative_weights(sim.requires_grad_())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(size))
    assert not weights.requires_grad and negative_weights(sim.bfloat16()).dtype == torch.float32
    assert not weights.diagonal().any()
    for _ in range(5):
        assert (sample_negatives(sim, generator) != torch.arange(size)).all()


def test_pooling_gives_the_published_cells_and_takes_any_grid() -> None:
    grid = torch.arange(256.0).view(1, 256, 1)
    pooled = pool_patches(grid, (16, 16))
    assert pooled.shape == (1, 16, 1)
    assert pooled[0, 0, 0] == grid.view(16, 16)[:4, :4].mean()
    assert pooled[0, 7, 0] == grid.view(16, 16)[4:8, 12:].mean()
    for side, cells in ((14, 9), (18, 16), (20, 16), (24, 16), (4, 4), (1, 1), (2, 1), (30, 25)):
        assert pool_patches(torch.ones(2, side * side, 3), (side, side)).shape == (2, cells, 3)
    assert pool_patches(torch.ones(2, 6 * 9, 3), (6, 9)).shape == (2, 6, 3)
