"""A bundle: the graphs, what feeds them, and `bundle.json`, which says what they are and how they were verified."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.verify.checks import Bounds, Check
from tcl.encoders.bundle import FORMAT_VERSION, Bundle, _sha256
from tcl.encoders.graphs import DEFAULT_PRECISION, OPSET, graphs
from tcl.errors import MissingExtraError, UsageError
from tcl.files.atomic import atomic_folder
from tcl.files.locks import writing
from tcl.version import __version__
from tcl.weights.find import BUNDLE_FILE

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

TOOLS = ("torch", "onnx", "onnxruntime")


def build_bundle(
    model: TCL,
    target: Path,
    precisions: Sequence[str] = (DEFAULT_PRECISION,),
    *,
    matcher: bool = True,
    check: bool = True,
    images: Sequence[str | Path] = (),
    texts: Sequence[str] = (),
    static: bool = False,
    bounds: Bounds | None = None,
    progress: Callable[[str], object] = lambda step: None,
) -> Bundle:
    """Export `model` to the new folder `target`.

    Files are written beside it under a temporary name. A bundle that fails its verification is kept, marked unverified.

    Args:
        model: on the CPU, in evaluation mode.
        target: must not exist.
        precisions: of the graphs; fp8 needs images and texts.
        matcher: with the graphs that re-ranking needs.
        check: verify the written files against the model.
        images: real images, for verification and the ranges of int8 and fp8.
        texts: real texts, for the same.
        static: find the ranges of int8 on these, rather than for every batch; graphs that read what was not given keep
            finding them for every batch.
        bounds: how far figures may be off.
        progress: told what is done next.

    Raises:
        UsageError: `target` exists or cannot be written, or a precision does not exist.
        MissingExtraError: a package that exports or verifies is not installed.
        TclError: the disk is full, or the model cannot be exported.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnx")
    from export.graphs.write import check_precisions, export_onnx
    from export.readme import write_readme
    from export.verify.cases import Samples, calibration
    from export.verify.onnx import verify
    from export.verify.references import TorchReference

    precisions, bounds = check_precisions(precisions), bounds or Bounds()
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another --out")
    with writing(target), atomic_folder(target) as folder:
        samples = Samples(model.processor, images, texts)
        files = export_onnx(
            model,
            folder,
            precisions,
            matcher=matcher,
            calibration=calibration(TorchReference(model), samples, static),
            progress=lambda name: progress(f"writing {name}"),
        )
        model.processor.save(folder)
        checks = (
            verify(
                folder,
                model,
                precisions,
                matcher=matcher,
                samples=samples,
                bounds=bounds,
                progress=lambda name: progress(f"verifying {name}"),
            )
            if check
            else []
        )
        verified = check and all(item.passed for item in checks)
        write_readme(folder, model, files)
        if target.exists():  # which the lock cannot prevent where it was made by something else
            raise UsageError(f"{target}: cannot be written: it has appeared meanwhile", hint="choose another --out")
        manifest = _manifest(model, folder, precisions, matcher, files, checks, bounds, verified)
        (folder / BUNDLE_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    hashes, untrained = manifest["files"], tuple(model.untrained)
    return Bundle(
        target, model.model_hash, model.config.embed_dim, precisions, verified, files, hashes, untrained, checks
    )


def _manifest(
    model: TCL,
    folder: Path,
    precisions: Sequence[str],
    matcher: bool,
    files: Mapping[str, Mapping[str, Mapping[str, Any]]],
    checks: Sequence[Check],
    bounds: Bounds,
    verified: bool,
) -> dict[str, Any]:
    from export.graphs.build import sizes_of

    sizes = sizes_of(model)
    described = {}
    for graph in graphs(sizes, matcher):
        entries = {}
        for precision, entry in files[graph.name].items():
            own = [check for check in checks if (check.graph, check.precision) == (graph.name, precision)]
            entries[precision] = {**entry, "verified": bool(own) and all(check.passed for check in own)}
        described[graph.name] = graph.describe(entries)
    head = getattr(model, "head", None)
    return {
        "format_version": FORMAT_VERSION,
        "model_hash": model.model_hash,
        "embed_dim": sizes.embed_dim,
        "precisions": list(precisions),
        "opset": OPSET,
        "graphs": described,
        "task": {"name": head.task, "labels": head.labels} if head is not None else None,
        "untrained": list(model.untrained),
        "preprocessing": model.processor.settings(),
        "verified": verified,
        "verification": {**bounds.to_json(), "checks": [item.to_json() for item in checks]} if checks else None,
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
        "tools": {"tcl": __version__} | {name: import_module(name).__version__ for name in TOOLS},
    }
