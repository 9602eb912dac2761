"""Figures of a verification, and how far they may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl.errors import UsageError

COSINES = {"fp16": 0.9995, "bf16": 0.998, "int8": 0.99, "fp8": 0.99}
"""Smallest cosine between a row of a graph and of the model."""

DIFFERENCE = {"fp32": 1e-5}
"""Largest |difference| of an entry of a vector; of token states, relative to the largest of them."""

LOGITS = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.3, "fp8": 0.3}
"""Largest |difference| of a logit, relative to the largest |logit| where that is above 1."""

NEIGHBOURS = 10
POOL = 512  # rows that neighbours are looked for among, at most


@dataclass
class Check:
    """One line of a verification.

    Attributes:
        graph: name of the graph.
        precision: of the file.
        subject: `names`, `axes`, `shapes` or `values`.
        passed: whether it is as it should be.
        detail: what was seen; of a failure, where and what.
        output: whose values; empty unless `values`, as what follows.
        cases: sets of inputs that were compared.
        max_abs_diff: largest |graph - model| over all entries and cases; of states and logits over `scale`.
        min_cosine: smallest cosine between a row of the graph and of the model; None of logits.
        mean_cosine: the mean of these.
        neighbours: share of the ten nearest rows that are the same, among all rows that were compared; vectors only.
        bound: what `max_abs_diff` or `min_cosine` was held to.
        runtime: what computed the values.
    """

    graph: str
    precision: str
    subject: str
    passed: bool
    detail: str = ""
    output: str = ""
    cases: int = 0
    max_abs_diff: float | None = None
    min_cosine: float | None = None
    mean_cosine: float | None = None
    neighbours: float | None = None
    bound: str = ""
    runtime: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; NaN, which JSON does not know, as None."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


class Bounds:
    """How far figures may be off.

    Args:
        moved: other values than usual, by `PRECISION` or `logits.PRECISION`.
    """

    def __init__(self, moved: Mapping[str, float] | None = None) -> None:
        self.moved = dict(moved or {})

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Bounds:
        """From `fp16=0.999` and the like.

        Raises:
            UsageError: no such bound, or not a number that it could be.
        """
        known = [*DIFFERENCE, *COSINES, *(f"logits.{name}" for name in LOGITS)]
        moved = {}
        for text in texts:
            name, _, number = text.partition("=")
            try:
                value = float(number)
            except ValueError:
                value = float("nan")
            if name not in known:
                raise UsageError(f"--bound {text}: no such bound", hint=f"one of {', '.join(known)}, as in fp16=0.999")
            largest = 1.0 if name in COSINES else float("inf")
            if not 0 < value <= largest:
                meaning = "a cosine above 0 and up to 1" if name in COSINES else "a difference above 0"
                raise UsageError(f"--bound {text}: not {meaning}", hint=f"as in {name}={_usual(name)}")
            moved[name] = value
        return cls(moved)

    def of(self, precision: str, role: str) -> tuple[Literal["difference", "cosine"], float]:
        """Which figure is held to which bound."""
        name = f"logits.{precision}" if role == "logits" else precision
        return "cosine" if name in COSINES else "difference", self.moved.get(name, _usual(name))

    def to_json(self) -> dict[str, Any]:
        """All bounds, and which of them were moved."""
        names = [*DIFFERENCE, *COSINES, *(f"logits.{name}" for name in LOGITS)]
        return {"bounds": {name: self.moved.get(name, _usual(name)) for name in names}, "moved": sorted(self.moved)}


def _usual(name: str) -> float:
    kind, _, precision = name.rpartition(".")
    return LOGITS[precision] if kind else (DIFFERENCE | COSINES)[precision]


class Figures:
    """The figures of one output over all cases.

    Args:
        role: `vectors`, `states` or `logits`.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.difference = 0.0
        self.smallest = 1.0
        self.total = 0.0
        self.rows = 0
        self.finite = True
        self.worst = {"difference": "", "cosine": "", "finite": ""}
        self.pool: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def add(self, case: str, actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Count one case."""
        if self.finite and not np.isfinite(actual).all():
            self.finite, self.worst["finite"] = False, case
        with np.errstate(invalid="ignore", over="ignore"):
            largest = float(np.abs(expected).max())
            scale = {"vectors": 1.0, "states": largest or 1.0, "logits": max(1.0, largest)}[self.role]
            difference = float(np.abs(actual - expected).max()) / scale
            a, b = (part.reshape(len(part), -1).astype(np.float64) for part in (actual, expected))
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
        smallest = float(cosines.min())
        if difference > self.difference or np.isnan(difference):  # which then stays, as nothing compares with NaN
            self.difference, self.worst["difference"] = difference, case
        if smallest < self.smallest or np.isnan(smallest):
            self.smallest, self.worst["cosine"] = smallest, case
        self.total += float(cosines.sum())
        self.rows += len(cosines)
        if self.role == "vectors" and sum(len(rows) for rows, _ in self.pool) < POOL:
            self.pool.append((actual, expected))

    def check(self, graph: str, precision: str, output: str, cases: int, bounds: Bounds, runtime: str) -> Check:
        """The figures against their bound; the detail names the worst case."""
        kind, bound = bounds.of(precision, self.role)
        good = self.smallest >= bound if kind == "cosine" else self.difference <= bound
        at = self.worst[kind] or "every case"
        if not self.finite:
            detail = f"{output} is not finite at {self.worst['finite']}"
        elif kind == "cosine":
            detail = f"{output}: smallest cosine {self.smallest:.10g} (bound {bound:.10g}) at {at}"
        else:
            detail = f"{output}: max |difference| {self.difference:.1e} (bound {bound:.10g}) at {at}"
        return Check(
            graph,
            precision,
            "values",
            bool(good and self.finite and self.rows),
            detail if self.rows else "nothing was compared",
            output,
            cases,
            self.difference,
            *self._cosines(),
            self._neighbours() if self.finite else None,
            f"{kind} {bound:.10g}",
            runtime,
        )

    def _cosines(self) -> tuple[float | None, float | None]:
        """The smallest and the mean; a handful of logits has no direction worth a figure."""
        if self.role == "logits" or not self.rows:
            return None, None
        return self.smallest, self.total / self.rows

    def _neighbours(self) -> float | None:
        if sum(len(rows) for rows, _ in self.pool) <= NEIGHBOURS + 1:
            return None
        actual, expected = (np.concatenate(side) for side in zip(*self.pool, strict=True))
        nearest = []
        for side, others in ((actual, actual), (expected, expected)):
            sims = side @ others.T
            np.fill_diagonal(sims, -np.inf)
            nearest.append(np.argpartition(-sims, NEIGHBOURS)[:, :NEIGHBOURS])
        same = [len(np.intersect1d(*rows)) for rows in zip(*nearest, strict=True)]
        return float(np.mean(same) / NEIGHBOURS)
