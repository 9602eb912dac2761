"""Line charts as inline SVG: no script, no font, no file beside them. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22  # margins for the numbers at the axes
BUCKETS = 240  # more points than that are drawn as mean and range of a bucket
LOG_RATIO = 100  # largest over median value from which an axis is logarithmic

Point = tuple[float, float]


class Line(NamedTuple):
    """A curve.

    Args:
        label: what it is.
        points: x and y, x ascending.
        reference: drawn dashed, with dots, as something to compare with.
    """

    label: str
    points: Sequence[Point]
    reference: bool = False


class _Bucket(NamedTuple):
    x: float
    low: float
    mean: float
    high: float


def thin(points: Sequence[Point], buckets: int = BUCKETS) -> list[_Bucket]:
    """At most `buckets` groups of neighbours, none when there are few points anyway, with mean and range of each."""
    size = math.ceil(len(points) / buckets)
    result = []
    for start in range(0, len(points), max(size, 1)):
        group = points[start : start + size]
        values = [y for _, y in group]
        x = sum(x for x, _ in group) / len(group)
        result.append(_Bucket(x, min(values), sum(values) / len(values), max(values)))
    return result


def chart(title: str, lines: Sequence[Line], note: str = "") -> str:
    """A figure with one or more curves over the steps; empty when there is nothing to draw.

    Args:
        title: heading of the figure.
        lines: the curves; the latest value of each is printed beside its name.
        note: what the figure shows, in a few words.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    curves = [thin(line.points) for line in lines]
    axes = _Axes(curves)
    parts, keys = axes.grid(), []
    number = 0
    for line, curve in zip(lines, curves, strict=True):
        name = "ref" if line.reference else f"s{number % 4}"
        number += not line.reference
        parts += _draw(axes, curve, name, line.reference, len(curve) < len(line.points))
        value = "" if line.reference else f" <b>{format_figure(line.points[-1][1])}</b>"
        label = "" if len(lines) == 1 else f"{escape(line.label)}"
        keys.append(f'<span class="key {name}">{label}{value}</span>')
    note = f"<small>{escape(note)}</small>" if note else ""
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3>{''.join(keys)}{note}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over the steps">'
        f"{''.join(parts)}</svg></figure>"
    )


def format_figure(value: float) -> str:
    """Four digits, the way people write them: 0.4123, 12,345, 1.0e-5."""
    if value == int(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-4 or abs(value) >= 1e6:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


class _Axes:
    """Where a value is in the picture."""

    def __init__(self, curves: Sequence[Sequence[_Bucket]]) -> None:
        xs = [bucket.x for curve in curves for bucket in curve]
        values = sorted(value for curve in curves for bucket in curve for value in (bucket.low, bucket.high))
        self.log = values[0] > 0 and values[-1] > LOG_RATIO * values[len(values) // 2]
        self.left, self.right = min(xs), max(xs)
        low, high = self._scaled(values[0]), self._scaled(values[-1])
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        self.bottom, self.top = low - room, high + room
        if not self.log and 0 <= values[0] <= values[-1] / 3:
            self.bottom = 0.0

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left) if self.right > self.left else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (self._scaled(value) - self.bottom) / (self.top - self.bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        parts = [f'<text x="{LEFT - 5}" y="{HEIGHT - 6}" text-anchor="end">step</text>']
        for value in _log_ticks(self.bottom, self.top) if self.log else _ticks(self.bottom, self.top):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{format_figure(value)}</text>')
        for value in _ticks(self.left, self.right, whole=True):
            x = self.x(value)
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{format_figure(value)}</text>')
        return parts


def _draw(axes: _Axes, curve: Sequence[_Bucket], name: str, dots: bool, band: bool) -> list[str]:
    places = [f"{axes.x(bucket.x):.1f} {axes.y(bucket.mean):.1f}" for bucket in curve]
    parts = []
    if band:
        edge = [f"{axes.x(bucket.x):.1f} {axes.y(bucket.high):.1f}" for bucket in curve]
        edge += [f"{axes.x(bucket.x):.1f} {axes.y(bucket.low):.1f}" for bucket in reversed(curve)]
        parts.append(f'<path class="band {name}" d="M{"L".join(edge)}Z"/>')
    if len(places) > 1:
        parts.append(f'<path class="line {name}" d="M{"L".join(places)}"/>')
    if dots or len(places) < 20:
        for place in places:
            x, y = place.split()
            parts.append(f'<circle class="dot {name}" cx="{x}" cy="{y}" r="2.2"/>')
    return parts


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round numbers between two values."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two exponents, at most five."""
    exponents = range(math.ceil(low), math.floor(high) + 1)
    return [10.0**exponent for exponent in exponents[:: math.ceil(len(exponents) / 5) or 1]]
