"""One file or engine under verification: cases go in, checks come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.verify.cases import Case, in_precision
from export.verify.checks import Bounds, Check, Figures
from tcl.encoders.graphs import Graph
from tcl.errors import reason_of


class Session(Protocol):
    """What computes a graph: a session of ONNX Runtime, or an engine."""

    def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """The outputs by name."""
        ...


class Comparison:
    """What is found of one graph in one precision.

    Args:
        graph: that is computed.
        precision: of it.
        runtime: what computes it, for the record.
    """

    def __init__(self, graph: Graph, precision: str, runtime: str) -> None:
        self.graph, self.precision, self.runtime = graph, precision, runtime
        self.found: list[Check] = []
        self.failed: Check | None = None
        self.cases = 0
        self.figures = {port.name: Figures(port.role) for port in graph.outputs}

    def passed(self, subject: str, detail: str) -> None:
        """Note what is as it should be."""
        self.found.append(Check(self.graph.name, self.precision, subject, True, detail))

    def fail(self, subject: str, detail: str) -> None:
        """Note what makes everything after it pointless."""
        self.failed = Check(self.graph.name, self.precision, subject, False, detail, cases=self.cases)

    def run(self, case: Case, sessions: Sequence[Session]) -> None:
        """Compare one case in each of the sessions, unless an earlier one made that pointless."""
        if self.failed is not None:
            return
        feed = in_precision(self.graph, case.feed, self.precision)
        for session in sessions:
            try:
                outputs = session.run(list(self.figures), feed)
            except Exception as error:  # those of runtimes share no public base class
                self.fail("shapes", f"{case.name}: does not run: {reason_of(error)}")
                return
            for (name, figures), actual in zip(self.figures.items(), outputs, strict=True):
                expected = case.expected[name]
                if actual.shape != expected.shape:
                    self.fail("shapes", f"{case.name}: {name} {actual.shape}, not {expected.shape}")
                    return
                figures.add(case.name, actual.astype(np.float32), expected)
        self.cases += 1

    def checks(self, bounds: Bounds) -> list[Check]:
        """What was found."""
        if self.failed is not None:
            return [*self.found, self.failed]
        shapes = Check(self.graph.name, self.precision, "shapes", True, f"{self.cases} cases", cases=self.cases)
        values = [
            figures.check(self.graph.name, self.precision, name, self.cases, bounds, self.runtime)
            for name, figures in self.figures.items()
        ]
        return [*self.found, shapes, *values]
