"""Everything random is a function of numbers that say where a run stands, so there is no random state to save.

A batch of a run is known by (seed, step, slice): whichever process computes it, and after whatever interruption, it
draws the same masks, negatives and dropout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def mix(*numbers: int) -> int:
    """A seed of 63 bits from several numbers; neighbouring ones give unrelated seeds."""
    text = ":".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and put its state back afterwards."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
