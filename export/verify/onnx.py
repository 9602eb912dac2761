"""Do the written graphs compute what the model computes? Names, axes, shapes, then values, on fresh sessions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.verify.cases import Case, Samples, cases
from export.verify.checks import Bounds, Check
from export.verify.comparison import Comparison
from export.verify.references import TorchReference
from tcl.encoders.graphs import DEFAULT_PRECISION, ONNX_RUNTIME, Graph, graphs
from tcl.encoders.sessions import open_session
from tcl.errors import reason_of

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

ORT_TYPES = {
    "uint8": "tensor(uint8)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
}
ROUNDED = ("fp16", "bf16", "fp8")
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

    Graphs in half precision and in 8-bit floats are compared as a GPU computes them, see `rounding.py`; in float16 the
    file is also run as it is, which ONNX Runtime cannot do on a CPU with the others.

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
    from export.graphs.build import sizes_of

    reference = TorchReference(model)
    threads = 1 if reference.small else None  # of small products a second thread makes slow ones
    checks: list[Check] = []
    for graph in graphs(sizes_of(model), matcher):
        progress(graph.name)
        found = cases(reference, graph, samples or Samples(model.processor))
        checks += _verify_graph(folder, graph, precisions, found, bounds or Bounds(), threads)
    return checks


def _verify_graph(
    folder: Path, graph: Graph, precisions: Sequence[str], found: Iterator[Case], bounds: Bounds, threads: int | None
) -> list[Check]:
    with ExitStack() as stack:
        files = [_File(graph, precision, folder, stack, threads) for precision in precisions]
        for case in found:
            for file in files:
                file.compare(case)
        return [check for file in files for check in file.checks(bounds)]


class _File(Comparison):
    """One file under verification."""

    def __init__(self, graph: Graph, precision: str, folder: Path, stack: ExitStack, threads: int | None) -> None:
        super().__init__(graph, precision, _runtime(precision))
        self.sessions: list[Any] = []  # the first sees every case
        path = folder / graph.file(precision)
        try:
            if precision in ROUNDED:
                self.sessions.append(_open_rounded(path, stack, threads))
            if precision in ONNX_RUNTIME:
                self.sessions.append(open_session(path, threads))
            # Types are those of the file; the rounded form has the same at its edges.
            self._look_at(self.sessions[-1])
        except Exception as error:  # ONNX Runtime and the reader of files raise many kinds
            self.fail("names", f"cannot be opened: {reason_of(error)}")

    def compare(self, case: Case) -> None:
        """Compare one case."""
        self.run(case, self.sessions[: None if self.cases < PLAIN_CASES else 1])

    def _look_at(self, session: Any) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        wanted = {port.name: port for port in (*self.graph.inputs, *self.graph.outputs)}
        names = [node.name for node in (*inputs, *outputs)]
        detail = f"{', '.join(node.name for node in inputs)} -> {', '.join(node.name for node in outputs)}"
        if names != list(wanted):
            self.fail("names", f"{detail}, not {', '.join(wanted)}")
            return
        self.passed("names", detail)
        wrong = []
        for node in (*inputs, *outputs):
            port = wanted[node.name]
            axes = ORT_TYPES[self.graph.dtype(port, self.precision)], list(port.axes)
            if (node.type, node.shape) != axes:
                wrong.append(f"{node.name}: {node.type} {node.shape}, not {axes[0]} {axes[1]}")
        if wrong:
            self.fail("axes", "; ".join(wrong))
            return
        self.passed("axes", ", ".join(f"{port.name} [{', '.join(map(str, port.axes))}]" for port in wanted.values()))


def _open_rounded(path: Path, stack: ExitStack, threads: int | None) -> Any:
    from export.verify.rounding import write_rounded

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tcl-verify-")))
    write_rounded(path, folder / path.name)
    return open_session(folder / path.name, threads, optimise=False)


def _runtime(precision: str) -> str:
    """What computed the values, as `bundle.json` says."""
    plain = "onnxruntime on the CPU"
    rounded = f"{plain}, every operator in float32 and its result rounded"
    return {
        "fp16": f"{rounded} to fp16; {PLAIN_CASES} cases also as the file is",
        "bf16": f"{rounded} to bf16",
        "fp8": f"{rounded} to fp16, factors of products to fp8",
    }.get(precision, plain)
