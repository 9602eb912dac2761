"""Looks at the lines of `metrics.jsonl` as they come, and says when a run goes wrong.

Each rule asks for more than one odd line: a loss may pass through a value, one batch may be unusual, workers take a
while to start. `docs/monitoring.md` lists the rules with their bounds.

The figures that show how features fare are computed here too. They stay on the device: nothing here waits for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tcl.report.records import is_figure

TEMPERATURE_RANGE = (0.001, 0.5)  # of the learned temperature, as published

WINDOW = 50  # records that a running median looks back on
KEPT = 2500  # records in memory; the longest rule asks for 2,000 steps, which may be as many records
CALM = 10  # records without a finding before it is told again
BAND = 0.02  # relative distance at which a loss counts as being at a value
SPREAD = "_feat_std"  # how the keys of feature spreads end
COLLAPSED = 0.1  # feature spread; below it the mean cosine of two inputs is above 0.99
ONCE_SPREAD = 3 * COLLAPSED  # features that were told apart
MANY_LINES = 15  # records that need not be many steps
STARVED = 0.3  # share of the time spent waiting for data
MANY_DUPLICATES = 0.05  # share of the negatives
EXPLODED = 20  # times the running median of the gradient norm
SPIKE = 2  # times the running median of the loss
CHANCE_ITM = {math.log(3) - math.log(2) * 2 / 3: "one match in three", math.log(2): "one match in two"}
LEARNT_MLM = 2.5  # a masked-word loss that starts below it comes from weights that know the language

ADVICE = {
    "contrast": "Likely causes: too high a learning rate, captions that do not belong to their images (shuffled rows, "
    "a wrong image folder), frozen encoders, or weights that were not loaded. Try a lower optim.lr with more "
    "optim.warmup_steps, set optim.clip_norm=1.0, and look at the pairs with `tcl data check`.",
    "collapse": "Likely causes: too high a learning rate, or the same input in most pairs. Try a lower optim.lr, set "
    "optim.clip_norm=1.0, and start from an earlier checkpoint or from pre-trained encoders.",
    "itm": "Likely causes: captions that do not belong to their images or fit many of them, or a contrastive loss that "
    "has not got going either. Look at the pairs with `tcl data check`, or change optim.lr.",
    "mlm": "Likely causes: a tokenizer that does not fit the captions (many [UNK]: see `tcl data check`), too low a "
    "learning rate, or a frozen text encoder.",
    "temperature_low": "Likely causes: pairs that are learnt by heart (few data, no augmentation), or too high a "
    "learning rate. Try more data or augmentation, fewer epochs, or a lower optim.lr.",
    "temperature_high": "Likely causes: a collapse, or captions that do not belong to their images. Try a lower "
    "optim.lr, and look at the pairs with `tcl data check`.",
    "loader": "Try more data.workers (up to the number of CPU cores), or smaller images on a local disk "
    "(`tcl data pack`).",
    "duplicates": "Likely causes: a queue longer than the data, or images or captions that occur many times. Try a "
    "smaller loss.queue_size, and look for duplicates with `tcl data check`.",
    "grad_norm": "Likely causes: too high a learning rate, or a batch of broken samples. Try optim.clip_norm=1.0 or a "
    "lower optim.lr; if the loss does not recover, resume from an earlier checkpoint.",
    "spike": "Likely causes: too high a learning rate, or data of another kind from here on. Try a lower optim.lr or "
    "optim.clip_norm=1.0; if it does not recover, resume from an earlier checkpoint.",
}


class _Stretch(NamedTuple):
    """What a figure has been since a step, newest first."""

    since: int
    values: list[float]


Finding = tuple[str, str]  # the key of its advice, with `:` and a detail that tells equals apart; the sentence


class HealthMonitor:
    """Examines a run, record by record.

    Each warning is given when its condition sets in, and again only after the condition was away for a while. A resumed
    run shows the earlier records first and drops what is said about them: nothing is then said twice.

    Args:
        candidates: how many features a sample is contrasted with, batch and queue; None for a loss without contrast.
        warmup_steps: of the learning rate; until then a loss may stand still.
    """

    def __init__(self, candidates: int | None = None, *, warmup_steps: int = 0) -> None:
        self.candidates = candidates
        self.warmup_steps = warmup_steps
        self._series: dict[str, deque[tuple[int, float]]] = {}
        self._first_mlm: list[float] = []
        self._told: dict[str, int] = {}  # findings that were told -> records since they were last made

    def examine(self, record: Mapping[str, Any]) -> list[str]:
        """What is new with a training record; a record of a validation has nothing to say.

        Returns:
            the warnings: what is wrong, its likely causes, and what to try.
        """
        if "loss" not in record or "step" not in record:
            return []
        for key, value in record.items():
            if is_figure(value):
                self._series.setdefault(key, deque(maxlen=KEPT)).append((record["step"], float(value)))
        if is_figure(record.get("mlm")) and len(self._first_mlm) < 3:
            self._first_mlm.append(record["mlm"])
        findings = dict(self._findings())
        new = [f"{text}. {ADVICE[name.split(':')[0]]}" for name, text in findings.items() if name not in self._told]
        waiting = {name: away + 1 for name, away in self._told.items() if away + 1 < CALM}
        self._told = waiting | dict.fromkeys(findings, 0)
        return new

    # --- what the rules look at ----------------------------------------------------------------------------------

    def _recent(self, key: str, holds: Callable[[float], bool], count: int, steps: int = 0) -> _Stretch | None:
        """The newest values, at least `count` over `steps` steps; None where one of them fails.

        With `steps` it is about learning, and a value of the warm-up fails too.
        """
        values: list[float] = []
        first = self.warmup_steps if steps else 0
        newest = None
        for step, value in reversed(self._series.get(key, ())):
            if step < first or not holds(value):
                return None
            newest = step if newest is None else newest
            values.append(value)
            if len(values) >= count and newest - step >= steps:
                return _Stretch(step, values)
        return None

    def _stays_at(self, key: str, target: float, slack: int, count: int, steps: int) -> _Stretch | None:
        """Like `_recent`, where the values are around `target` and do not just pass through."""
        limit = BAND * target
        recent = self._recent(key, lambda value: abs(value - target) < slack * limit, count, steps)
        if not recent or abs(fmean(recent.values) - target) > limit:
            return None
        half = len(recent.values) // 2
        drift = fmean(recent.values[:half]) - fmean(recent.values[half:])
        return recent if abs(drift) < slack * limit / 12 else None

    def _newest(self, key: str, count: int) -> tuple[list[float], list[float]]:
        """The newest `count` values, and up to `WINDOW` before them; nothing while those are fewer than ten."""
        values = [value for _, value in islice(reversed(self._series.get(key, ())), WINDOW + count)]
        return (values[:count], values[count:]) if len(values) >= count + 10 else ([], [])

    # --- the rules -----------------------------------------------------------------------------------------------

    def _findings(self) -> Iterator[Finding]:
        yield from self._contrast()
        yield from self._collapse()
        yield from self._itm()
        yield from self._mlm()
        yield from self._temperature()
        yield from self._loader()
        yield from self._duplicates()
        yield from self._jumps()

    def _contrast(self) -> Iterator[Finding]:
        chance = math.log(self.candidates or 1)
        i2t, t2i = (self._stays_at(key, chance, 3, 10, 200) for key in ("cma_i2t", "cma_t2i"))
        if i2t and t2i:
            yield (
                "contrast",
                f"the contrastive loss (CMA) has stayed at ln({self.candidates:,}) = {chance:.2f} since step "
                f"{i2t.since:,}, which is guessing: the encoders have collapsed or learn nothing",
            )

    def _collapse(self) -> Iterator[Finding]:
        for key in self._series:
            recent = self._collapsed(key) if key.endswith(SPREAD) else None
            if recent:
                kind = key.removesuffix(SPREAD)
                yield (
                    f"collapse:{kind}",
                    f"the {kind} encoder has collapsed: since step {recent.since:,} the spread of its features is "
                    f"{fmean(recent.values):.3f} (1: all over, 0: every {kind} gets the same vector)",
                )

    def _collapsed(self, key: str) -> _Stretch | None:
        """A spread that stays low: after the warm-up, or before, where it has been higher. A new model starts low."""

        def low(spread: float) -> bool:
            return spread < COLLAPSED

        after = self._recent(key, low, 5, 100) or self._recent(key, low, MANY_LINES, 1)
        was_spread = any(spread > ONCE_SPREAD for _, spread in self._series[key])
        return after or (self._recent(key, low, MANY_LINES) if was_spread else None)

    def _itm(self) -> Iterator[Finding]:
        for chance, meaning in CHANCE_ITM.items():
            recent = self._stays_at("itm", chance, 8, 20, 2000)
            if recent:
                yield (
                    "itm",
                    f"the matching loss (ITM) has stayed at {chance:.3f} since step {recent.since:,}: it always "
                    f"guesses {meaning}",
                )

    def _mlm(self) -> Iterator[Finding]:
        first = fmean(self._first_mlm or [0.0])
        recent = self._recent("mlm", lambda loss: loss > max(0.8 * first, LEARNT_MLM), 20, 2000)
        if recent and fmean(recent.values) > 0.95 * first:
            yield (
                "mlm",
                f"the masked-word loss (MLM) does not move: {fmean(recent.values):.2f} since step {recent.since:,}, "
                f"after {first:.2f} at the start",
            )

    def _temperature(self) -> Iterator[Finding]:
        low, high = TEMPERATURE_RANGE
        if recent := self._recent("temperature", lambda value: value <= low * 1.001, 3):
            yield "temperature_low", f"{_at(recent, 'lower', low)}: the contrast cannot get sharper"
        if recent := self._recent("temperature", lambda value: value >= high * 0.999, 3):
            yield "temperature_high", f"{_at(recent, 'upper', high)}: the model cannot tell pairs apart"

    def _loader(self) -> Iterator[Finding]:
        recent = self._recent("loader_wait", lambda share: share > STARVED, 3)
        if recent:
            yield "loader", f"{fmean(recent.values):.0%} of the time is spent waiting for data"

    def _duplicates(self) -> Iterator[Finding]:
        recent = self._recent("duplicate_negatives", lambda share: share > 0, 5)
        collapsed = any(each[-1][1] < COLLAPSED for key, each in self._series.items() if key.endswith(SPREAD))
        if not recent or collapsed:  # after a collapse everything is a copy, which has its own warning
            return
        share = fmean(recent.values)
        copies = share * (self.candidates or 0)
        if share > MANY_DUPLICATES or copies >= 1:
            each = f", {copies:.0f} for each sample" if copies >= 1 else ""
            text = f"{share:.2%} of the negatives are copies of the sample itself{each}: equal things are pushed apart"
            yield "duplicates", text

    def _jumps(self) -> Iterator[Finding]:
        norm, norms = self._newest("grad_norm", 1)
        if norm and norm[0] > EXPLODED * median(norms):
            text = f"the gradient norm is {norm[0]:.3g}; its running median is {median(norms):.3g}"
            yield "grad_norm", text
        now, losses = self._newest("loss", 2)  # two, as a single batch may be odd
        if not now:
            return
        usual = median(losses)
        noise = median(abs(loss - usual) for loss in losses)
        if min(now) > max(SPIKE * usual, usual + 8 * noise):
            yield "spike", f"the loss has jumped to {now[0]:.3g}; its running median is {usual:.3g}"


def _at(recent: _Stretch, which: str, bound: float) -> str:
    """Where the temperature is; only pre-training keeps it within its bounds."""
    value = recent.values[0]
    if abs(value - bound) <= 0.001 * bound:
        return f"the temperature is at its {which} bound {bound:g}"
    return f"the temperature is {value:.3g}, {'below' if value < bound else 'above'} its {which} bound {bound:g}"


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
