"""The TensorRT engines of `tcl export`: what is asked for, the build, and what is said of them.

Requests are checked before anything is written; where an engine is off, the command ends with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl_cli._console import out as console
from tcl_cli._export_report import show_table
from tcl_cli._options import option

if TYPE_CHECKING:
    from export.verify.cases import Reference, Samples
    from export.verify.checks import Bounds
    from export.verify.engines import VerifiedEngine
    from tcl.encoders.bundle import Bundle
    from tcl.encoders.tensorrt.build import Progress
    from tcl.encoders.tensorrt.engine import BuiltEngine, Sidecar
    from tcl.encoders.tensorrt.package import Package
    from tcl.models.tcl import TCL


def show_engines(found: Sequence[VerifiedEngine]) -> None:
    """A line for each, then the table of what was compared."""
    for engine, _ in found:
        size = engine.path.stat().st_size / 1e6
        state = "built" if engine.new else "there"
        console.message(f"  {state}  {engine.path}  {size:.1f} MB  {_verdict(engine.sidecar)}")
    if checks := [check for _, checks in found for check in checks]:
        show_table(checks)


def engines_json(engines: Sequence[BuiltEngine]) -> dict[str, Any]:
    """Where the engines are, and for each whether it was verified and what was found."""
    return {
        "engines": [str(engine.path) for engine in engines],
        "engine_verification": {
            str(engine.path): {"verified": engine.sidecar.verified, **engine.sidecar.verification} for engine in engines
        },
    }


def check_engines(engines: Sequence[BuiltEngine]) -> None:
    """End the command where an engine computes something else.

    Raises:
        VerificationError: names the first of them.
    """
    from tcl.errors import VerificationError

    for engine in engines:
        if engine.sidecar.verified is False:
            check = next(check for check in engine.sidecar.verification["checks"] if not check["passed"])
            raise VerificationError(
                f"{engine.path}: {check['subject']}: {check['detail']}",
                hint="the engine is kept for inspection and marked unverified; do not deploy it",
            )


def _verdict(sidecar: Sidecar) -> str:
    if sidecar.verified is None:
        return f"not verified: {sidecar.verification['not_run']}"
    return "verified" if sidecar.verified else "FAILED"


PANEL = "TensorRT"
STEPS = 100  # of the bar, for each engine

TrtOption = Annotated[
    bool,
    option(
        "--trt",
        help="Also build TensorRT engines, into the bundle; --model may then be a bundle, which gets them.",
        panel=PANEL,
    ),
]
ProfileOption = Annotated[
    list[str] | None,
    option(
        "--profile",
        metavar="KIND=MIN,USUAL,MAX",
        help="Sizes that engines take: of batches of image, text or pair (both), of length (tokens of a text), and of "
        "answers and answer-length.",
        panel=PANEL,
    ),
]
WorkspaceOption = Annotated[
    float | None,
    option(
        "--workspace",
        metavar="GB",
        help="GPU memory that a layer may use for itself. Default: all there is.",
        panel=PANEL,
    ),
]
HardwareOption = Annotated[
    bool, option("--hardware-compatible", help="Engines for every GPU from Ampere on; slower.", panel=PANEL)
]
VersionOption = Annotated[
    bool, option("--version-compatible", help="Engines that later TensorRT loads too.", panel=PANEL)
]


@dataclass(frozen=True)
class EngineRequest:
    """What engines are wanted.

    Attributes:
        package: that builds them.
        profile: ranges as they were given.
        workspace: limit in bytes.
        hardware_compatible: see `BuildOptions`.
        version_compatible: see there.
        bounds: that the engines are held to; None: they are not verified.
    """

    package: Package
    profile: Sequence[str]
    workspace: int | None
    hardware_compatible: bool
    version_compatible: bool
    bounds: Bounds | None


def request_engines(
    trt: bool,
    precisions: Sequence[str],
    profile: Sequence[str],
    workspace: float | None,
    hardware_compatible: bool,
    version_compatible: bool,
    bounds: Bounds | None,
) -> EngineRequest | None:
    """What `--trt` and its options ask for; None without it.

    Raises:
        UsageError: the options are nonsense, or TensorRT cannot build so, here.
        MissingExtraError: it is not installed.
    """
    from tcl.errors import UsageError

    given = {
        "--profile": bool(profile),
        "--workspace": workspace is not None,
        "--hardware-compatible": hardware_compatible,
        "--version-compatible": version_compatible,
    }
    if not trt:
        if alone := [name for name, there in given.items() if there]:
            raise UsageError(f"{alone[0]} is of TensorRT engines, and none are built", hint="add --trt")
        return None
    if workspace is not None and not 0 < workspace < 1e6:
        raise UsageError(f"--workspace {workspace:g}: no amount of memory", hint="write gigabytes, as in --workspace 4")
    from tcl.encoders.tensorrt.build import BuildOptions, check_options
    from tcl.encoders.tensorrt.package import open_package
    from tcl.encoders.tensorrt.profiles import Profiles

    profiles = Profiles.parse(profile, max_length=1)  # here only for its errors; the length is the model's
    package = open_package()
    memory = None if workspace is None else int(workspace * 1e9)
    check_options(package, BuildOptions(profiles, memory, hardware_compatible, version_compatible), precisions)
    return EngineRequest(package, tuple(profile), memory, hardware_compatible, version_compatible, bounds)


def check_ranges(what: str, missing: Sequence[str]) -> None:
    """Refuse graphs that need ranges in them, and would have none, before they are written.

    Args:
        what: they are.
        missing: options that give the images and texts to find the ranges on, and were not given.

    Raises:
        UsageError: one is missing.
    """
    from tcl.errors import UsageError

    if missing:
        names = " and ".join(option.partition(" ")[0] for option in missing)
        raise UsageError(
            f"{what} finds its ranges on real images and texts: without {names} there are none",
            hint=f"add {' '.join(missing)}, or leave {what.split()[0]} out",
        )


def add_engines(
    folder: Path, precisions: Sequence[str], request: EngineRequest, not_for_bundles: Sequence[str], json: bool
) -> None:
    """Build the engines of a bundle that is there, and say where they are.

    Raises:
        UsageError: options were given that are of exports alone; else as of `build_engines`.
        VerificationError: an engine computes something else than the bundle.
    """
    from export.verify.engines import onnx_reference
    from tcl.encoders.bundle import read_bundle
    from tcl.errors import UsageError

    if not_for_bundles:
        raise UsageError(
            f"{folder} is a bundle, and only its engines are built: {not_for_bundles[0]} has no effect",
            hint=f"leave out {' and '.join(not_for_bundles)}",
        )
    bundle = read_bundle(folder)
    if not bundle.verified:
        console.warning(f"{folder} is not verified")
    engines = _build_and_verify(bundle, precisions, request, lambda: onnx_reference(bundle))
    if json:
        console.json({"out": str(folder), "model_hash": bundle.model_hash} | engines_json(engines))
    else:
        console.data(str(folder))
    check_engines(engines)


def build_for_model(
    model: TCL,
    bundle: Bundle,
    precisions: Sequence[str],
    request: EngineRequest,
    images: Sequence[str],
    texts: Sequence[str],
) -> list[BuiltEngine]:
    """Build and verify the engines of a model that was exported just now, on the same real images and texts."""
    from export.verify.cases import Samples
    from export.verify.references import TorchReference

    samples = Samples(model.processor, images, texts)
    return _build_and_verify(bundle, precisions, request, lambda: TorchReference(model), samples)


def _build_and_verify(
    bundle: Bundle,
    precisions: Sequence[str],
    request: EngineRequest,
    reference: Callable[[], Reference],
    samples: Samples | None = None,
) -> list[BuiltEngine]:
    """Build and verify what is wanted, with bars; errors and arguments as of `build_engines` and `verify_engines`."""
    from export.verify.engines import VerifiedEngine, verify_engines

    built = _build(bundle, precisions, request)
    if request.bounds is None:
        found = [VerifiedEngine(engine, []) for engine in built]
    else:
        with console.progress("Verifying", len(built)) as advance:
            found = verify_engines(
                bundle,
                built,
                request.package,
                reference,
                samples=samples,
                bounds=request.bounds,
                progress=lambda name: advance(1, engine=name),
            )
    show_engines(found)
    return [engine for engine, _ in found]


def _build(bundle: Bundle, precisions: Sequence[str], request: EngineRequest) -> list[BuiltEngine]:
    from tcl.data.processor import Processor
    from tcl.encoders.tensorrt.build import BuildOptions
    from tcl.encoders.tensorrt.engines import build_engines
    from tcl.encoders.tensorrt.profiles import Profiles

    options = BuildOptions(
        Profiles.parse(request.profile, Processor.load(bundle.folder).max_length),
        request.workspace,
        request.hardware_compatible,
        request.version_compatible,
    )
    count = len(bundle.graphs) * len(precisions)
    console.message(f"Building {count} engines with {request.package.title}")
    with console.progress("Building", count * STEPS) as advance:
        shown, finished = 0, 0

        def show(total: int, name: str) -> None:
            nonlocal shown
            advance(max(total - shown, 0), engine=name)
            shown = max(total, shown)

        def start(name: str) -> Progress:
            nonlocal finished
            place, finished = finished, finished + 1
            show(place * STEPS, name)
            return lambda phase, share: show(place * STEPS + int(share * STEPS), name)

        built = build_engines(bundle, precisions, options, request.package, start)
        show(count * STEPS, "done")
    return built
