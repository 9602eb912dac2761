"""A bundle on disk: its `bundle.json`, and the files it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcl.encoders.graphs import DEFAULT_PRECISION, Graph
from tcl.errors import CheckpointError, UsageError
from tcl.files.hashes import file_sha256
from tcl.weights.find import BUNDLE_FILE, read_json
from tcl.weights.untrained import read_untrained

FORMAT_VERSION = 2

AGAIN = "export the model again"
FILE = {"file": str, "data?": str, "verified?": bool}
PORTS = {"*": {"dtype": str, "shape": [(int, str)]}}
GRAPH = {"precisions": {"*": FILE}}
MANIFEST = {
    "model_hash": str,
    "embed_dim": int,
    "precisions": [str],
    "verified": bool,
    "verification?": dict,
    "files": {"*": str},
    "untrained?": [str],
}
"""What a `bundle.json` says, as `tcl.files.json_object` checks it."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        model_hash: of the model it was exported from.
        embed_dim: width of the vectors.
        precisions: that every graph has.
        verified: True only after a verification in which every check passed.
        checked: there was a verification.
        graphs: by graph and precision, what `bundle.json` says of the file, `file` at least.
        hashes: SHA-256 of each file.
        untrained: parts of the model that hold random numbers, see `tcl.weights.untrained`.
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
    packed: Path | None = None
    checked: bool = True

    def is_verified(self, precision: str) -> bool:
        """Whether every check of the graphs in a precision passed."""
        entries = (precisions[precision] for precisions in self.graphs.values() if precision in precisions)
        return all(entry.get("verified", self.verified) for entry in entries)

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
        if file_sha256(path) != self.hashes[name]:
            raise CheckpointError(f"{path}: is not the file that was exported (other SHA-256)", hint=AGAIN)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle of this format or the one before; small files are compared with their hash, graphs when opened.

    Raises:
        CheckpointError: naming the file that is missing, damaged, or of a newer format.
    """
    path = folder / BUNDLE_FILE
    version = read_json(path).get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format version {version}, this tcl reads {FORMAT_VERSION}",
            hint="update tcl, or export the model again",
        )
    manifest = read_json(path, MANIFEST | {"graphs": {"*": FILE if version == 1 else GRAPH}})
    if version == 1:  # one precision, and the file named beside inputs and outputs
        found = {name: {DEFAULT_PRECISION: {"file": entry["file"]}} for name, entry in manifest["graphs"].items()}
    else:
        found = {name: entry["precisions"] for name, entry in manifest["graphs"].items()}
    names = [part for entry in found.values() for file in entry.values() for part in (file["file"], file.get("data"))]
    bundle = Bundle(
        folder,
        manifest["model_hash"],
        manifest["embed_dim"],
        tuple(manifest["precisions"]),
        manifest["verified"],
        found,
        manifest["files"],
        read_untrained(manifest),
        checked=manifest.get("verification") is not None,
    )
    if unknown := [name for name in names if name is not None and name not in bundle.hashes]:
        raise CheckpointError(f"{path}: damaged: lists no hash of {unknown[0]}", hint=AGAIN)
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
    manifest = read_json(folder / BUNDLE_FILE, {"graphs": {"*": {"inputs": PORTS, "outputs": PORTS}}})
    return {name: Graph.described(name, entry) for name, entry in manifest["graphs"].items()}
