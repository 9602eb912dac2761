"""Seeds of runs: 63 bits, unrelated for neighbours, and a generator that is put back."""

from __future__ import annotations

import torch

from tcl.machine.seeding import mix, seeded


def test_seeds_have_63_bits_and_are_unrelated() -> None:
    seeds = {numbers: mix(*numbers) for numbers in ((a, b, c) for a in (0, 1, 12) for b in range(9) for c in range(9))}
    assert len({*seeds.values(), mix(1, 23), mix(12, 3), mix(123)}) == len(seeds) + 3
    assert max(seed.bit_length() for seed in seeds.values()) == 63
    lowest = [seed & 1 for seed in seeds.values()]
    assert 0.3 < sum(lowest) / len(lowest) < 0.7


def test_a_seeded_block_leaves_no_trace() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    before = torch.rand(2)
    with seeded(5):
        inside = torch.rand(2)
    assert torch.equal(torch.cat([before, torch.rand(2)]), expected)
    with seeded(5):
        assert torch.equal(torch.rand(2), inside)
