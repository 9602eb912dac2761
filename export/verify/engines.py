"""Do built engines compute what the model computes? Asked right after they are built, where this machine can run them.

Inputs and bounds are those that the ONNX graphs are verified with. The answer is written beside each engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from export.verify.cases import Feed, Reference, Samples, cases
from export.verify.checks import Bounds, Check
from export.verify.comparison import Comparison, Session
from export.verify.references import OnnxReference
from tcl.encoders.bundle import Bundle, read_graphs
from tcl.encoders.graphs import DEFAULT_PRECISION, Graph
from tcl.encoders.tensorrt.cuda import current_gpu, runtime
from tcl.encoders.tensorrt.engine import BuiltEngine, Sidecar
from tcl.encoders.tensorrt.engines import record_verification
from tcl.encoders.tensorrt.package import Package
from tcl.encoders.tensorrt.profiles import is_length
from tcl.encoders.tensorrt.session import EngineSession
from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError


class VerifiedEngine(NamedTuple):
    """An engine and what its verification found.

    Attributes:
        engine: its sidecar says whether it was verified, and if not, why.
        checks: of this verification; none where there was none, or an earlier one was passed.
    """

    engine: BuiltEngine
    checks: list[Check]


def verify_engines(
    bundle: Bundle,
    engines: Sequence[BuiltEngine],
    package: Package,
    reference: Callable[[], Reference],
    *,
    samples: Samples | None = None,
    bounds: Bounds | None = None,
    progress: Callable[[str], object] = lambda engine: None,
    open_session: Callable[[Package, BuiltEngine], Session] | None = None,
) -> list[VerifiedEngine]:
    """Compare engines with a reference, and write beside each what was found, or why nothing could be.

    Args:
        bundle: that they belong to.
        engines: those that were verified before within these bounds are left alone.
        package: that runs them.
        reference: called when there is something to compare; its `UsageError` says why there can be none.
        samples: real images and texts, compared beside random ones.
        bounds: how far figures may be off.
        progress: told the name of each engine before it is verified.
        open_session: of an engine; `EngineSession` unless given.

    Raises:
        UsageError: the folder cannot be written.
    """
    bounds = bounds or Bounds()
    passed = [engine for engine in engines if _passed(engine.sidecar, bounds)]
    pending = [engine for engine in engines if engine not in passed]
    hindrance = _hindrance(package) if pending else None
    expected: Reference | None = None
    if pending and hindrance is None:
        try:
            expected = reference()
        except UsageError as error:
            hindrance = error.message
    graphs = read_graphs(bundle.folder)
    found = []
    for engine in engines:
        if engine in passed:
            found.append(VerifiedEngine(engine, []))
        elif expected is None:
            found.append(_not_run(engine, str(hindrance)))
        else:
            progress(f"{engine.sidecar.graph} {engine.sidecar.precision}")
            comparison = _EngineComparison(package, engine, graphs[engine.sidecar.graph], open_session or EngineSession)
            found.append(comparison.verdict(expected, samples or Samples(expected.processor), bounds))
    return found


def onnx_reference(bundle: Bundle) -> Reference:
    """The float32 graphs of a bundle.

    Raises:
        UsageError: it has none, they were not verified, or nothing to run them with is installed.
    """
    if DEFAULT_PRECISION not in bundle.precisions:
        raise UsageError(f"the bundle has no {DEFAULT_PRECISION} graphs to compare them with")
    if not all(entry[DEFAULT_PRECISION].get("verified", bundle.verified) for entry in bundle.graphs.values()):
        raise UsageError(f"the {DEFAULT_PRECISION} graphs to compare them with are not verified themselves")
    if find_spec("onnxruntime") is None:
        raise UsageError("onnxruntime is not installed, which computes what to compare them with")
    return OnnxReference(bundle)


def _passed(sidecar: Sidecar, bounds: Bounds) -> bool:
    """Whether an engine was verified before, within the same bounds."""
    return sidecar.verified is True and sidecar.verification.get("bounds") == bounds.to_json()["bounds"]


def _hindrance(package: Package) -> str | None:
    """Why this machine runs no engine at all."""
    try:
        runtime()
    except MissingExtraError:
        return f"cuda-python is not installed, without which {package.title} runs no engine"
    return None if current_gpu() else "this machine has no GPU that could run it"


def _not_run(engine: BuiltEngine, reason: str) -> VerifiedEngine:
    return VerifiedEngine(record_verification(engine, None, {"not_run": reason}), [])


class _EngineComparison(Comparison):
    """One engine under verification."""

    def __init__(
        self,
        package: Package,
        engine: BuiltEngine,
        graph: Graph,
        open_session: Callable[[Package, BuiltEngine], Session],
    ) -> None:
        gpu = current_gpu()
        super().__init__(graph, engine.sidecar.precision, f"{package.title} on {gpu.name if gpu else 'no GPU'}")
        self.engine = engine
        self.session: Session | None = None
        self.hindrance = "its profile takes none of the inputs that are compared"
        try:
            self.session = open_session(package, engine)
        except TclError as error:
            # An engine that is tied to no GPU need not run on this one; nor is there always memory for it.
            if isinstance(error, CheckpointError) and engine.sidecar.gpu is not None:
                self.fail("names", f"cannot be loaded: {error.message}")
            self.hindrance = error.message

    def verdict(self, reference: Reference, samples: Samples, bounds: Bounds) -> VerifiedEngine:
        """Compare it, and write down what was found."""
        if self.session is not None:
            for case in cases(reference, self.graph, samples):
                if _takes(self.engine.sidecar, case.feed):
                    self.run(case, [self.session])
        if not self.cases and self.failed is None:
            return _not_run(self.engine, self.hindrance)
        checks = self.checks(bounds)
        verification = {
            "reference": reference.name,
            "runtime": self.runtime,
            **bounds.to_json(),
            "checks": [check.to_json() for check in checks],
        }
        verified = all(check.passed for check in checks)
        return VerifiedEngine(record_verification(self.engine, verified, verification), checks)


def _takes(sidecar: Sidecar, feed: Feed) -> bool:
    """Whether the profile of an engine covers some inputs: batches are split and padded, short texts padded."""
    ranges = sidecar.options.profiles.of(sidecar.inputs)
    return all(
        axis in ("batch", "images") or (size <= allowed.largest and (is_length(axis) or size >= allowed.smallest))
        for name, axes in sidecar.inputs.items()
        for size, axis, allowed in zip(feed[name].shape, axes, ranges[name], strict=True)
    )
