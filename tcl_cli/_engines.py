"""The TensorRT engines of `tcl export`: what is asked for, checked before anything is written, and the build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcl_cli._console import out as console

if TYPE_CHECKING:
    from export.build_progress import Progress
    from export.bundle import Bundle
    from export.engine import BuiltEngine
    from export.tensorrt_package import Package

PANEL = "TensorRT"
STEPS = 100  # of the bar, for each engine

TrtOption = Annotated[
    bool,
    typer.Option(
        "--trt",
        help="Also build TensorRT engines, into the bundle; --model may then be a bundle, which gets them.",
        rich_help_panel=PANEL,
    ),
]
ProfileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        metavar="KIND=MIN,USUAL,MAX",
        help="Sizes that engines take: of batches of image, text or pair (both), of length (tokens of a text), and of "
        "answers and answer-length.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
WorkspaceOption = Annotated[
    float | None,
    typer.Option(
        "--workspace",
        metavar="GB",
        help="GPU memory that a layer may use for itself. Default: all there is.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
HardwareOption = Annotated[
    bool,
    typer.Option("--hardware-compatible", help="Engines for every GPU from Ampere on; slower.", rich_help_panel=PANEL),
]
VersionOption = Annotated[
    bool,
    typer.Option("--version-compatible", help="Engines that later TensorRT loads too.", rich_help_panel=PANEL),
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
    """

    package: Package
    profile: Sequence[str]
    workspace: int | None
    hardware_compatible: bool
    version_compatible: bool


def request_engines(
    trt: bool, profile: Sequence[str], workspace: float | None, hardware_compatible: bool, version_compatible: bool
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
    from export.profiles import Profiles
    from export.tensorrt import BuildOptions, check_options
    from export.tensorrt_package import open_package

    profiles = Profiles.parse(profile, max_length=1)  # here only for its errors; the length is the model's
    package = open_package()
    memory = None if workspace is None else int(workspace * 1e9)
    check_options(package, BuildOptions(profiles, memory, hardware_compatible, version_compatible))
    return EngineRequest(package, tuple(profile), memory, hardware_compatible, version_compatible)


def check_int8(real_inputs: bool) -> None:
    """Refuse int8 whose ranges are not in the graphs, before these are written.

    Raises:
        UsageError: they would be found for every batch.
    """
    from tcl.errors import UsageError

    if not real_inputs:
        raise UsageError(
            "int8 for TensorRT finds its ranges on real images and texts",
            hint="name some by --calibrate IMAGES --calibrate-texts TEXTS, or leave int8 out",
        )


def add_engines(
    folder: Path, precisions: Sequence[str], request: EngineRequest, not_for_bundles: Sequence[str], json: bool
) -> None:
    """Build the engines of a bundle that is there, and say where they are.

    Raises:
        UsageError: options were given that are of exports alone; else as of `build_engines`.
    """
    from export.bundle import read_bundle
    from tcl.errors import UsageError

    if not_for_bundles:
        raise UsageError(
            f"{folder} is a bundle, and only its engines are built: {not_for_bundles[0]} has no effect",
            hint=f"leave out {' and '.join(not_for_bundles)}",
        )
    bundle = read_bundle(folder)
    if not bundle.verified:
        console.warning(f"{folder} is not verified")
    paths = [str(engine.path) for engine in build_requested(bundle, precisions, request)]
    if json:
        console.json({"out": str(folder), "model_hash": bundle.model_hash, "engines": paths})
    else:
        console.data(str(folder))


def build_requested(bundle: Bundle, precisions: Sequence[str], request: EngineRequest) -> list[BuiltEngine]:
    """Build what is wanted, with a bar; errors as of `build_engines`."""
    from export.engine_build import build_engines
    from export.profiles import Profiles
    from export.tensorrt import BuildOptions
    from tcl.processor import Processor

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
    for engine in built:
        size = engine.path.stat().st_size / 1e6
        console.message(f"  {'built' if engine.new else 'there'}  {engine.path}  {size:.1f} MB")
    return built
