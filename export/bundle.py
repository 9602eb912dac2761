"""A bundle: the graphs, what feeds them, and `bundle.json`, which says what they are and how they were verified."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tcl
from export.verify.checks import Bounds, Check
from tcl.encoders.graphs import DEFAULT_PRECISION, OPSET, Graph, graphs
from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError
from tcl.files.atomic import atomic_folder
from tcl.weights.find import BUNDLE_FILE, read_json
from tcl.weights.untrained import read_untrained

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

FORMAT_VERSION = 2
TOOLS = ("torch", "onnx", "onnxruntime")
AGAIN = "export the model again"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        model_hash: of the model it was exported from.
        embed_dim: width of the vectors.
        precisions: that every graph has.
        verified: True only after a verification in which every check passed.
        graphs: by graph and precision, what `bundle.json` says of the file, `file` at least.
        hashes: SHA-256 of each file.
        untrained: parts of the model that hold random numbers, see `tcl.weights.untrained`.
        checks: of that verification; empty when there was none, or when the bundle was read from disk.
        packed: the `.tar` that the folder was unpacked from, which is the name that a user knows.
    """

    folder: Path
    model_hash: str
    embed_dim: int
    precisions: tuple[str, ...]
    verified: bool
    graphs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    hashes: Mapping[str, str]
    untrained: tuple[str, ...] = ()
    checks: list[Check] = field(default_factory=list)
    packed: Path | None = None

    def graph_file(self, graph: str, precision: str) -> Path:
        """The file of a graph, compared with its recorded hash.

        Raises:
            UsageError: the bundle has no such graph or precision.
            CheckpointError: it is not the file that was exported.
        """
        name = self.packed or self.folder
        if graph not in self.graphs:
            matcher = "" if "matcher" in self.graphs else " and no matcher, as with --no-matcher"
            raise UsageError(f"{name}: has no {graph} graph{matcher}", hint=AGAIN + ", without --no-matcher")
        if precision not in self.graphs[graph]:
            raise UsageError(
                f"{name}: has no {precision} graphs, only {', '.join(self.graphs[graph])}",
                hint=f"export the model again with --precision {precision}",
            )
        entry = self.graphs[graph][precision]
        for name in filter(None, (entry["file"], entry.get("data"))):
            self.check_file(str(name))
        return self.folder / str(entry["file"])

    def check_file(self, name: str) -> None:
        """Compare a file with its recorded hash.

        Raises:
            CheckpointError: it is missing, or another one.
        """
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing from the bundle", hint=AGAIN)
        if _sha256(path) != self.hashes[name]:
            raise CheckpointError(f"{path}: is not the file that was exported (other SHA-256)", hint=AGAIN)


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


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Hold the name `target` while it is written, and say in one line why it cannot be.

    Raises:
        UsageError: another process is writing it, or it cannot be written.
        TclError: the disk is full.
    """
    lock = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{target}: another process is writing it", hint="wait for it, or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            else:
                # Whoever had it may have removed the file just now, and someone else may have made it anew.
                if not lock.exists() or not os.path.samestat(os.fstat(handle), lock.stat()):
                    raise UsageError(f"{target}: another process is writing it", hint="choose another --out")
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TclError(
                f"{target}: not enough disk space; nothing is left of it", hint="free some, or choose another --out"
            ) from error
        raise UsageError(
            f"{target}: cannot be written: {error.strerror or error}", hint="choose another --out"
        ) from error


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle of this format or the one before; small files are compared with their hash, graphs when opened.

    Raises:
        CheckpointError: naming the file that is missing, damaged, or of a newer format.
    """
    path = folder / BUNDLE_FILE
    manifest: dict[str, Any] = read_json(path)
    version = manifest.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format version {version}, this tcl reads {FORMAT_VERSION}",
            hint="update tcl, or export the model again",
        )
    try:
        if version == 1:  # one precision, and the file named beside inputs and outputs
            found = {name: {DEFAULT_PRECISION: {"file": entry["file"]}} for name, entry in manifest["graphs"].items()}
        else:
            found = {name: dict(entry["precisions"]) for name, entry in manifest["graphs"].items()}
        names = [
            part for entry in found.values() for file in entry.values() for part in (file["file"], file.get("data"))
        ]
        bundle = Bundle(
            folder,
            str(manifest["model_hash"]),
            int(manifest["embed_dim"]),
            tuple(manifest["precisions"]),
            bool(manifest["verified"]),
            found,
            {str(name): str(digest) for name, digest in manifest["files"].items()},
            read_untrained(manifest),
        )
        if unknown := [name for name in names if name is not None and name not in bundle.hashes]:
            raise CheckpointError(f"{path}: damaged: lists no hash of {unknown[0]}", hint=AGAIN)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__} {error}", hint=AGAIN) from error
    for name in bundle.hashes:
        if Path(name).name != name:
            raise CheckpointError(f"{path}: damaged: {name!r} is no name of a file", hint=AGAIN)
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing from the bundle", hint=AGAIN)
        if name not in names:
            bundle.check_file(name)
    return bundle


def read_graphs(folder: Path) -> dict[str, Graph]:
    """The graphs of a bundle by name, as `bundle.json` describes them.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / BUNDLE_FILE
    manifest: dict[str, Any] = read_json(path)
    try:
        return {name: Graph.described(name, entry) for name, entry in manifest["graphs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__} {error}", hint=AGAIN) from error


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
        "tools": {"tcl": tcl.__version__} | {name: import_module(name).__version__ for name in TOOLS},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
