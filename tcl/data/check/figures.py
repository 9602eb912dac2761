"""Counts, shares and quantiles, as a check of data reports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

SHOWN = 10  # entries of a "worst first" list
QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99}

Listing = Callable[[Mapping[str, Any]], object]
"""Takes what is wrong with one row: `row`, `image`, `problem`, and what explains it."""


def percent(part: int, whole: int) -> float:
    """Percentage to two places; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def share(part: int, whole: int) -> dict[str, float]:
    """A count with its percentage."""
    return {"count": part, "percent": percent(part, whole)}


def summary(counts: Counter[int]) -> dict[str, float]:
    """Minimum, quantiles (nearest rank), maximum and mean of numbers, given how often each occurs."""
    total = sum(counts.values())
    if not total:
        return {}
    quantiles: dict[str, float] = {}
    values, passed = sorted(counts), 0
    wanted = list(QUANTILES.items())
    for value in values:
        passed += counts[value]
        while wanted and passed >= wanted[0][1] * total:
            quantiles[wanted.pop(0)[0]] = value
    mean = sum(value * count for value, count in counts.items()) / total
    return {"min": values[0], **quantiles, "max": values[-1], "mean": round(mean, 2)}


def most_common(counts: Counter[str]) -> dict[str, int]:
    """The most frequent entries, most frequent first; equal ones in the order of the alphabet."""
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:SHOWN])


def digest(data: bytes) -> bytes:
    """Eight bytes that stand for many: among ten million, two agree by chance once in some 400,000 cases."""
    return blake2b(data, digest_size=8).digest()
