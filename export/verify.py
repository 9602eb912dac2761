"""Do the written graphs compute what the model computes? Names, axes, shapes, then values, on fresh sessions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.cases import Case, Samples, cases, is_small
from export.checks import Bounds, Check, Figures
from export.formats import DEFAULT_PRECISION, Graph, graphs
from export.sessions import one_line, open_session

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

ORT_TYPES = {
    "uint8": "tensor(uint8)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
}
ROUNDED = ("fp16", "bf16")
PLAIN_CASES = 6  # of a half-precision file that are also run as it is


def verify(
    folder: Path,
    model: TCL,
    precisions: Sequence[str] = (DEFAULT_PRECISION,),
    *,
    matcher: bool = True,
    samples: Samples | None = None,
    bounds: Bounds | None = None,
    progress: Callable[[str], object] = lambda graph: None,
) -> list[Check]:
    """Compare the graphs in `folder` with the model they were exported from.

    Half-precision graphs are compared as a GPU computes them, see `rounding.py`; in float16 the file is also run as it
    is, which in bfloat16 ONNX Runtime cannot do on a CPU.

    Args:
        folder: holds the `.onnx` files.
        model: on the CPU, in evaluation mode.
        precisions: of the files.
        matcher: whether the graphs of re-ranking are there.
        samples: real images and texts, compared beside random ones.
        bounds: how far figures may be off.
        progress: told the name of each graph before it is verified.

    Returns:
        For each graph and precision its checks, up to the first that makes the next ones pointless.
    """
    from export.builders import sizes_of

    threads = 1 if is_small(model) else None  # of small products a second thread makes slow ones
    checks: list[Check] = []
    for graph in graphs(sizes_of(model), matcher):
        progress(graph.name)
        found = cases(model, graph, samples or Samples(model))
        checks += _verify_graph(folder, graph, precisions, found, bounds or Bounds(), threads)
    return checks


def _verify_graph(
    folder: Path, graph: Graph, precisions: Sequence[str], found: Iterator[Case], bounds: Bounds, threads: int | None
) -> list[Check]:
    with ExitStack() as stack:
        subjects = [_Subject(graph, precision, folder, stack, threads) for precision in precisions]
        for case in found:
            for subject in subjects:
                subject.run(case)
        return [check for subject in subjects for check in subject.checks(bounds)]


class _Subject:
    """One file under verification."""

    def __init__(self, graph: Graph, precision: str, folder: Path, stack: ExitStack, threads: int | None) -> None:
        self.graph, self.precision = graph, precision
        self.found: list[Check] = []
        self.failed: Check | None = None
        self.cases = 0
        self.figures = {port.name: Figures(port.role) for port in graph.outputs}
        self.runs: list[Any] = []  # the first sees every case
        path = folder / graph.file(precision)
        try:
            if precision in ROUNDED:
                self.runs.append(_open_rounded(path, stack, threads))
            if precision != "bf16":
                self.runs.append(open_session(path, threads))
            # Types are those of the file; the rounded form has the same at its edges.
            self._look_at(self.runs[-1])
        except Exception as error:  # ONNX Runtime and the reader of files raise many kinds
            self._fail("names", f"cannot be opened: {one_line(error)}")

    def _look_at(self, session: Any) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        wanted = {port.name: port for port in (*self.graph.inputs, *self.graph.outputs)}
        names = [node.name for node in (*inputs, *outputs)]
        detail = f"{', '.join(node.name for node in inputs)} -> {', '.join(node.name for node in outputs)}"
        if names != list(wanted):
            self._fail("names", f"{detail}, not {', '.join(wanted)}")
            return
        self.found.append(Check(self.graph.name, self.precision, "names", True, detail))
        wrong = []
        for node in (*inputs, *outputs):
            port = wanted[node.name]
            axes = ORT_TYPES[self.graph.dtype(port, self.precision)], list(port.axes)
            if (node.type, node.shape) != axes:
                wrong.append(f"{node.name}: {node.type} {node.shape}, not {axes[0]} {axes[1]}")
        if wrong:
            self._fail("axes", "; ".join(wrong))
            return
        right = ", ".join(f"{port.name} [{', '.join(map(str, port.axes))}]" for port in wanted.values())
        self.found.append(Check(self.graph.name, self.precision, "axes", True, right))

    def _fail(self, subject: str, detail: str) -> None:
        self.failed = Check(self.graph.name, self.precision, subject, False, detail, cases=self.cases)

    def run(self, case: Case) -> None:
        """Compare one case, unless an earlier one made that pointless."""
        if self.failed is not None:
            return
        feed = dict(case.feed)
        for port in self.graph.inputs:
            if port.dtype == "states":
                feed[port.name] = feed[port.name].astype(self.graph.dtype(port, self.precision))
        for session in self.runs[: None if self.cases < PLAIN_CASES else 1]:
            try:
                outputs: list[NDArray[Any]] = session.run(list(self.figures), feed)
            except Exception as error:
                self._fail("shapes", f"{case.name}: does not run: {one_line(error)}")
                return
            for (name, figures), actual in zip(self.figures.items(), outputs, strict=True):
                expected = case.expected[name]
                if actual.shape != expected.shape:
                    self._fail("shapes", f"{case.name}: {name} {actual.shape}, not {expected.shape}")
                    return
                figures.add(case.name, actual.astype(np.float32), expected)
        self.cases += 1

    def checks(self, bounds: Bounds) -> list[Check]:
        """What was found."""
        if self.failed is not None:
            return [*self.found, self.failed]
        shapes = Check(self.graph.name, self.precision, "shapes", True, f"{self.cases} cases", cases=self.cases)
        values = [
            figures.check(self.graph.name, self.precision, name, self.cases, bounds, _runtime(self.precision))
            for name, figures in self.figures.items()
        ]
        return [*self.found, shapes, *values]


def _open_rounded(path: Path, stack: ExitStack, threads: int | None) -> Any:
    from export.rounding import write_rounded

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tcl-verify-")))
    write_rounded(path, folder / path.name)
    return open_session(folder / path.name, threads, optimise=False)


def _runtime(precision: str) -> str:
    """What computed the values, as `bundle.json` says."""
    plain = "onnxruntime on the CPU"
    rounded = f"{plain}, every operator in float32 and its result rounded to {precision}"
    return {"fp16": f"{rounded}; {PLAIN_CASES} cases also as the file is", "bf16": rounded}.get(precision, plain)
