"""Which model does a command mean, and where is it?"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.files.hub import quiet_hub
from tcl.files.json_object import Malformed, Shape, read_object

CONFIG_FILE = "config.json"  # marks a model folder
WEIGHTS_FILE = "model.safetensors"
MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, "tokenizer.json", "preprocess.json")
BUNDLE_FILE = "bundle.json"  # marks a bundle made by `tcl export`
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is.

    Attributes:
        kind: `model` folder, exported `bundle`, published `reference` checkpoint (.pth), or `hub` id.
        location: its path, or the hub id.
    """

    kind: Literal["model", "bundle", "reference", "hub"]
    location: str

    @property
    def path(self) -> Path:
        """The location as a path."""
        return Path(self.location)

    def fetch(self) -> Path:
        """Where it is on this machine: its path, or the folder that a model of the hub was fetched to.

        Raises:
            UsageError: the hub has none, or there is no way to it.
        """
        return fetch_model(self.location) if self.kind == "hub" else self.path

    @property
    def name(self) -> str:
        """A short name: that of the run, the bundle, the file or the hub repository."""
        path = self.path
        return path.parent.name if self.kind == "model" and path.name == "model" else path.stem


def find_model(model: str | None = None) -> ModelSource:
    """The model a user names, or without a name `$TCL_MODEL`, or the newest finished one under `./runs`.

    Raises:
        UsageError: there is none; the hint holds the two commands that make one.
    """
    model = model or os.environ.get("TCL_MODEL")
    if model:
        return _named(model)
    finished = [
        path.parent for path in Path("runs").glob(f"*/model/{CONFIG_FILE}") if not path.parent.parent.is_symlink()
    ]
    if finished:
        newest = max(finished, key=lambda path: (path / CONFIG_FILE).stat().st_mtime_ns)
        return ModelSource("model", str(newest))
    raise UsageError(
        "no model: none was given, $TCL_MODEL is not set, and there is no finished run under ./runs",
        hint="make one with `tcl pretrain`, or name one with `--model PATH_OR_HUB_ID`",
    )


def find_bundle(model: str | None = None) -> ModelSource:
    """Like `find_model`, for what runs without torch: the bundle a user names, or the newest one under `./exports`.

    Raises:
        UsageError: there is none, or the name means something else.
    """
    if model or os.environ.get("TCL_MODEL"):
        source = find_model(model)
        if source.kind == "bundle":
            return source
        raise UsageError(
            f"{source.location} is no exported bundle, which this backend needs",
            hint=f"make one with `tcl export --model {source.location}`, then name it with --model",
        )
    bundles = list(Path("exports").glob(f"*/{BUNDLE_FILE}"))
    if bundles:
        newest = max(bundles, key=lambda path: path.stat().st_mtime_ns)
        return ModelSource("bundle", str(newest.parent))
    raise UsageError(
        "no exported bundle under ./exports, which this backend needs",
        hint="make one with `tcl export`, or name one with `--model BUNDLE`",
    )


def _named(model: str) -> ModelSource:
    path = Path(model)
    if path.is_dir():
        if (path / BUNDLE_FILE).is_file():
            return ModelSource("bundle", model)
        for folder in (path, path / "model"):
            if (folder / CONFIG_FILE).is_file():
                return ModelSource("model", str(folder.resolve() if path.is_symlink() else folder))
        unfinished = (path / "checkpoints").is_dir()
        raise UsageError(
            f"{model}: this run has not finished, so it has no model yet" if unfinished else f"{model}: holds no model",
            hint=f"finish it with `tcl pretrain --resume --out {model}`"
            if unfinished
            else "a model folder has a config.json, a bundle a bundle.json",
        )
    if path.is_file():
        if path.suffix in {".pth", ".pt", ".bin"}:
            return ModelSource("reference", model)
        raise UsageError(f"{model}: not a model", hint="give a run, model or bundle folder, a .pth, or a hub id")
    if HUB_ID.fullmatch(model) and not model.startswith((".", "runs/", "exports/")):
        return ModelSource("hub", model)
    raise UsageError(f"{model}: no such model", hint="give a run, model or bundle folder, a .pth, or a hub id")


def fetch_model(hub_id: str, names: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a hub repository with those of the files `names` that it has.

    Raises:
        UsageError: there is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            return Path(snapshot_download(hub_id, allow_patterns=list(names)))
    except Exception as error:  # the hub client raises many kinds, from its HTTP library too
        raise UsageError(
            f"{hub_id}: neither a file or folder here nor a model that could be fetched from the hub: "
            f"{reason_of(error)}",
            hint="check the name and the network, or give a folder",
        ) from error


def read_json(path: Path, shape: Mapping[str, Shape] | None = None) -> dict[str, Any]:
    """A JSON object of a model or bundle.

    Args:
        path: of the file.
        shape: of the object, see `tcl.files.json_object`.

    Raises:
        CheckpointError: missing, malformed, or of another shape.
    """
    try:
        return read_object(path, shape or {})
    except (OSError, Malformed) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "copy the folder again, or make it again"
        raise CheckpointError(f"{path}: cannot be read: {reason}", hint=hint) from error
