"""What there is to say about a model, and all of it that a bundle says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl.weights.find import BUNDLE_FILE, read_json

if TYPE_CHECKING:
    from tcl.weights.keyreport import KeyReport


@dataclass
class Description:
    """What there is to say about a model.

    Attributes:
        kind: run, model folder, checkpoint, published checkpoint, or bundle.
        location: where it is.
        model_hash: of weights, sizes, vocabulary and preprocessing, where it is recorded.
        architecture: sizes by name.
        temperature: of the contrastive loss, as learned.
        parameters: weights by part.
        training: of a run or checkpoint: steps, recipe, last metrics.
        bundle: what `bundle.json` says.
        keys: what became of each key.
        problem: why it cannot be used as it is, if so.
    """

    kind: str
    location: str
    model_hash: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    keys: KeyReport | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"keys": self.keys.to_dict() if self.keys else None}


def describe_bundle(folder: Path) -> Description:
    """What `bundle.json` says.

    Raises:
        CheckpointError: it is damaged.
    """
    manifest: dict[str, Any] = read_json(folder / BUNDLE_FILE)
    shown = ("format_version", "embed_dim", "precisions", "opset", "verified", "graphs", "files", "tools", "created")
    return Description(
        "bundle",
        str(folder),
        str(manifest.get("model_hash")),
        bundle={name: manifest[name] for name in shown if name in manifest},
    )
