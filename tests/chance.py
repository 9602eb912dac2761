"""Do draws follow the distribution that they should? Seeds are fixed, so a test that passes once passes always.

Every bound is where a right draw would lie in all but one of 10,000 seeds. The number of draws is the caller's choice:
enough of them that the mistake in mind lies far outside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DEVIATIONS = 3.72  # of a normal distribution, beyond which one in 10,000 lies, to one side


def follows(counts: Tensor, shares: Tensor) -> bool:
    """Pearson's chi-square: counts of some outcomes against how likely each is. Outcomes of share 0 must not occur.

    The rarest are taken together, to be expected five times at least: the test is none for fewer.
    """
    expected, order = (counts.sum() * shares.double() / shares.double().sum()).sort()
    observed = counts.double()[order]
    if observed[expected == 0].any():
        return False
    rare = max(int((expected < 5).sum()), int((expected.cumsum(0) < 5).sum()) + 1)
    expected, observed = (torch.cat([values[:rare].sum()[None], values[rare:]]) for values in (expected, observed))
    return ((observed - expected).square() / expected).sum().item() < _chi_square_bound(len(expected) - 1)


def _chi_square_bound(freedom: int) -> float:
    """By Wilson and Hilferty's approximation."""
    assert freedom > 0, "one outcome alone shows nothing"
    part = 2 / (9 * freedom)
    return freedom * (1 - part + _DEVIATIONS * math.sqrt(part)) ** 3


def is_uniform(values: list[float], low: float, high: float) -> bool:
    """Kolmogorov and Smirnov's test of values between two bounds, which none may lie beyond."""
    shares = (torch.tensor(values, dtype=torch.float64) - low) / (high - low)
    return bool(shares.min() >= -1e-6) and bool(shares.max() <= 1 + 1e-6) and follows_curve(shares)


def follows_curve(shares: Tensor) -> bool:
    """The same, given for each value how likely a smaller one is."""
    steps = torch.arange(len(shares) + 1) / len(shares)
    ordered = shares.double().sort().values
    gap = torch.maximum((ordered - steps[:-1]).abs().max(), (ordered - steps[1:]).abs().max()).item()
    return gap * math.sqrt(len(shares)) < 2.23


def is_rate(hits: float, tries: int, rate: float) -> bool:
    """Did something that happens at a rate happen about as often as it should?"""
    return abs(hits / tries - rate) < 3.9 * math.sqrt(rate * (1 - rate) / tries)


def binomial(tries: int, rate: float) -> Tensor:
    """How likely 0, 1, ... `tries` hits are."""
    return torch.tensor([math.comb(tries, k) * rate**k * (1 - rate) ** (tries - k) for k in range(tries + 1)])
