"""A bundle: the graphs, what feeds them, and `bundle.json`, which says what they are and how they were verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tcl
from export.formats import OPSET, graphs
from export.verify import BOUND, Check, verify
from tcl.atomic import atomic_folder
from tcl.errors import CheckpointError, UsageError
from tcl.resolve import BUNDLE_FILE, read_json

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

FORMAT_VERSION = 1
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        model_hash: of the model it was exported from.
        embed_dim: width of the vectors.
        precision: of the graphs.
        verified: True only after a verification in which every check passed.
        checks: of that verification; empty when there was none, or when the bundle was read from disk.
    """

    folder: Path
    model_hash: str
    embed_dim: int
    precision: str
    verified: bool
    checks: list[Check] = field(default_factory=list)


def build_bundle(model: TCL, target: Path, *, check: bool = True, images: Sequence[str | Path] = ()) -> Bundle:
    """Export `model` to the new folder `target`.

    Files are written beside it under a temporary name. A bundle that fails its verification is kept, marked unverified.

    Args:
        model: on the CPU, in evaluation mode.
        target: must not exist.
        check: verify the written files against the model.
        images: real images for the verification.

    Raises:
        UsageError: `target` exists or cannot be written.
    """
    from export.onnx import export_onnx

    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another --out")
    try:
        with atomic_folder(target) as folder:
            export_onnx(model, folder)
            model.processor.save(folder)
            checks = verify(folder, model, images) if check else []
            verified = check and all(item.passed for item in checks)
            manifest = _manifest(model, folder, checks, verified)
            (folder / BUNDLE_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}", hint="choose another --out") from error
    return Bundle(target, model.model_hash, model.config.embed_dim, "fp32", verified, checks)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and compare every file with its recorded hash.

    Raises:
        CheckpointError: naming the file that is missing, damaged, or of a newer format.
    """
    path = folder / BUNDLE_FILE
    manifest: dict[str, Any] = read_json(path)
    again = "export the model again"
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {manifest.get('format_version')}, this tcl reads {FORMAT_VERSION}",
            hint="update tcl, or export the model again",
        )
    try:
        for name, digest in manifest["files"].items():
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name}: is missing from the bundle", hint=again)
            if _sha256(folder / name) != digest:
                raise CheckpointError(f"{folder / name}: is not the file that was exported (other SHA-256)", hint=again)
        return Bundle(
            folder,
            str(manifest["model_hash"]),
            int(manifest["embed_dim"]),
            ", ".join(manifest["precisions"]),
            bool(manifest["verified"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__} {error}", hint=again) from error


def _manifest(model: TCL, folder: Path, checks: Sequence[Check], verified: bool) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "model_hash": model.model_hash,
        "embed_dim": model.config.embed_dim,
        "precisions": ["fp32"],
        "opset": OPSET,
        "graphs": {graph.name: graph.describe(model.config.embed_dim) for graph in graphs(model.processor.image_size)},
        "preprocessing": model.processor.settings(),
        "verified": verified,
        "verification": {"bound": BOUND, "checks": [item.to_json() for item in checks]} if checks else None,
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
        "tools": {"tcl": tcl.__version__} | {name: import_module(name).__version__ for name in TOOLS},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
