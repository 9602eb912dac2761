"""The engines of a bundle, built into it; whole or not at all, once for all that want the same."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tcl.encoders.bundle import Bundle
from tcl.encoders.tensorrt.build import BuildOptions, Progress, build_plan, check_options
from tcl.encoders.tensorrt.cuda import Gpu
from tcl.encoders.tensorrt.engine import FOLDER, PLATFORM, BuiltEngine, Sidecar, engines_of, sources
from tcl.encoders.tensorrt.package import Package
from tcl.errors import CheckpointError, TclError, UsageError
from tcl.files.atomic import shared_file
from tcl.files.cache import locked


def build_engines(
    bundle: Bundle,
    precisions: Sequence[str],
    options: BuildOptions,
    package: Package,
    progress: Callable[[str], Progress] = lambda name: lambda phase, share: None,
) -> list[BuiltEngine]:
    """Build the engine of every graph of a bundle; those that are there already and alike are kept.

    Args:
        bundle: whose ONNX files are taken, and where the engines go.
        precisions: of the graphs.
        options: see there.
        package: that builds.
        progress: gives what is told how far one engine is.

    Raises:
        UsageError: the bundle lacks a precision, this TensorRT cannot build it, or the folder cannot be written.
        CheckpointError: an ONNX file is not the one that was exported, or TensorRT does not take it.
        TclError: a build failed, or the disk is full.
    """
    check_options(package, options, precisions)
    wanted = [(graph, precision) for precision in precisions for graph in bundle.graphs]
    for graph, precision in wanted:  # all that can be known before the first minute is spent
        check_precision(bundle, graph, precision)
    return [
        build_engine(bundle, graph, precision, options, package, progress(f"{graph} {precision}"))
        for graph, precision in wanted
    ]


def check_precision(bundle: Bundle, graph: str, precision: str) -> Path:
    """The ONNX file of a graph, unless it cannot become an engine.

    Raises:
        UsageError: saying why.
        CheckpointError: the ONNX file is not the one that was exported.
    """
    path = bundle.graph_file(graph, precision)
    if bundle.graphs[graph][precision].get("quantisation") == "dynamic":
        raise UsageError(
            f"{graph} int8: finds its ranges for every batch, which TensorRT does not do",
            hint="export with --int8 static --calibrate IMAGES --calibrate-texts TEXTS, or leave int8 out",
        )
    return path


def build_engine(
    bundle: Bundle,
    graph: str,
    precision: str,
    options: BuildOptions,
    package: Package,
    progress: Progress = lambda phase, share: None,
) -> BuiltEngine:
    """Build one engine, unless it is there already; arguments and errors as of `build_engines`.

    Of several processes that want the same engine, one builds it and the others wait.
    """
    gpu = check_options(package, options, [precision])
    path = check_precision(bundle, graph, precision)
    sidecar = _describe(bundle, graph, precision, options, package, gpu)
    target = bundle.folder / FOLDER / sidecar.folder / sidecar.name
    with _writing(target), locked(_lock_of(target)):
        for engine in engines_of(bundle, graph, precision):
            if engine.path == target and engine.sidecar.recipe == sidecar.recipe and _whole(engine):
                return engine
        with shared_file(target) as temporary:  # fails here, before the work, where it cannot be written
            plan = build_plan(package, path, precision, options, progress)
            temporary.write_bytes(plan.content)
            target.with_suffix(".json").unlink(missing_ok=True)  # never beside an engine that it does not describe
        sidecar = replace(sidecar, inputs=plan.inputs, sha256=hashlib.sha256(plan.content).hexdigest())
        _write_sidecar(target, sidecar)
    return BuiltEngine(target, sidecar, new=True)


def record_verification(engine: BuiltEngine, verified: bool | None, verification: dict[str, Any]) -> BuiltEngine:
    """Write beside an engine what its verification found; arguments as of `Sidecar`.

    Where another build has replaced the engine meanwhile, its sidecar is left alone.

    Raises:
        UsageError: the folder cannot be written.
        TclError: the disk is full.
    """
    sidecar = replace(engine.sidecar, verified=verified, verification=verification)
    if sidecar == engine.sidecar:  # nothing new, and the folder may be one that cannot be written
        return engine
    with _writing(engine.path), locked(_lock_of(engine.path)):
        path = engine.path.with_suffix(".json")
        if path.is_file() and json.loads(path.read_bytes())["sha256"] == sidecar.sha256:
            _write_sidecar(engine.path, sidecar)
    return replace(engine, sidecar=sidecar)


def _lock_of(engine: Path) -> str:
    """Name of the lock that is held while an engine or what is beside it is written."""
    return f"engine-{hashlib.sha256(str(engine.resolve()).encode()).hexdigest()[:40]}"


def _write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    with shared_file(engine.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(sidecar), indent=2) + "\n", encoding="utf-8")


def _describe(
    bundle: Bundle, graph: str, precision: str, options: BuildOptions, package: Package, gpu: Gpu | None
) -> Sidecar:
    return Sidecar(
        graph=graph,
        precision=precision,
        flavour=package.flavour,
        version=package.version,
        platform=PLATFORM,
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        driver=gpu.driver if gpu else None,
        cuda=gpu.cuda if gpu else None,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        workspace=options.workspace,
        profiles=options.profiles.to_json(),
        inputs={},
        model_hash=bundle.model_hash,
        onnx=sources(bundle, graph, precision),
        sha256="",
    )


def _whole(engine: BuiltEngine) -> bool:
    try:
        return bool(engine.read())
    except CheckpointError:
        return False


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TclError(f"{target}: not enough disk space; nothing is left of it", hint="free some") from error
        raise UsageError(
            f"{target}: cannot be written: {error.strerror or error}", hint="copy the bundle to where you may write"
        ) from error
