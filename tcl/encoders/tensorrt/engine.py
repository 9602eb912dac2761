"""Engines of a bundle: where they are, what each was built from and for, and whether it fits this machine.

`engines/<for what>/<graph>.<precision>.engine` is a plain plan of TensorRT; the `.json` beside it says the rest.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tcl.encoders.bundle import Bundle
from tcl.encoders.tensorrt.build import BuildOptions, slug
from tcl.encoders.tensorrt.cuda import Gpu
from tcl.encoders.tensorrt.package import TITLES, Flavour, Package
from tcl.encoders.tensorrt.profiles import Axes, Profiles
from tcl.errors import CheckpointError

FOLDER = "engines"
FORMAT_VERSION = 1
NOT_YET = "nothing has compared it since it was built"
PLATFORM = f"{platform.system()} {platform.machine()}"


@dataclass(frozen=True)
class Sidecar:
    """What is written beside an engine.

    Attributes:
        graph: of the bundle.
        precision: of the graph.
        flavour: of the TensorRT that built it.
        version: of that.
        platform: operating system and processor.
        gpu: that it was built for; None: it is tied to none.
        compute_capability: of that GPU.
        driver: newest CUDA that the driver knew.
        cuda: of the CUDA runtime.
        hardware_compatible: it runs on every GPU from Ampere on.
        version_compatible: later TensorRT loads it.
        workspace: limit in bytes.
        profiles: ranges by kind of axis.
        inputs: axes of each input.
        model_hash: of the model.
        onnx: SHA-256 of the files that it was built from.
        sha256: of the engine.
        verified: True after a verification in which every check passed, False after another; None where there was none.
        verification: its reference, bounds and figures, or `not_run`, the reason why there was none.
        format_version: of this file.
    """

    graph: str
    precision: str
    flavour: Flavour
    version: str
    platform: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    hardware_compatible: bool
    version_compatible: bool
    workspace: int | None
    profiles: dict[str, list[int]]
    inputs: dict[str, Axes]
    model_hash: str
    onnx: dict[str, str]
    sha256: str
    verified: bool | None = None
    verification: dict[str, Any] = field(default_factory=lambda: {"not_run": NOT_YET})
    format_version: int = FORMAT_VERSION

    @property
    def recipe(self) -> Sidecar:
        """What was known before it was built: equal for engines that are alike."""
        return replace(self, sha256="", inputs={}, verified=None, verification={})

    @property
    def options(self) -> BuildOptions:
        """With which it was built."""
        profiles = Profiles.from_json(self.profiles)
        return BuildOptions(profiles, self.workspace, self.hardware_compatible, self.version_compatible)

    @property
    def folder(self) -> str:
        """Name of the folder that says what its engines are for."""
        target = "no-gpu"  # needed to build it, nor is it tied to one
        if self.gpu is not None and self.compute_capability is not None:
            target = f"{slug(self.gpu)}-sm{self.compute_capability.replace('.', '')}"
        parts = [target, f"{self.flavour}{self.version}"]
        parts += ["hardware-compatible"] * self.hardware_compatible + ["version-compatible"] * self.version_compatible
        return "-".join(parts)

    @property
    def name(self) -> str:
        """Of the engine's file."""
        return f"{self.graph}.{self.precision}.engine"


_SIDECAR = TypeAdapter(Sidecar)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk.

    Attributes:
        path: of it.
        sidecar: what is known of it.
        new: built just now rather than found.
    """

    path: Path
    sidecar: Sidecar
    new: bool = False

    def read(self) -> bytes:
        """The plan.

        Raises:
            CheckpointError: it is missing, or not what was written.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.sidecar.sha256:
            raise CheckpointError(f"{self.path}: damaged: is not the engine that was built (other SHA-256)")
        return content


def mismatch(sidecar: Sidecar, bundle: Bundle, package: Package, gpu: Gpu | None) -> str | None:
    """Why an engine is not for this bundle and machine, or None where it is."""
    if sidecar.model_hash != bundle.model_hash:
        return "is of another model"
    if sidecar.onnx != sources(bundle, sidecar.graph, sidecar.precision):
        return "was built from another ONNX file"
    built = f"{TITLES[sidecar.flavour]} {sidecar.version}"
    if sidecar.flavour != package.flavour or not _loads(sidecar, package):
        return f"was built by {built}, and here is {package.title}"
    if sidecar.platform != PLATFORM:
        return f"was built on {sidecar.platform}, and this is {PLATFORM}"
    if sidecar.gpu is None or gpu is None:
        return None
    if sidecar.hardware_compatible:
        old = int(gpu.compute_capability.partition(".")[0]) < 8
        return f"needs a GPU from Ampere on, and here is {gpu.name}" if old else None
    if (sidecar.gpu, sidecar.compute_capability) != (gpu.name, gpu.compute_capability):
        return f"was built for {sidecar.gpu}, and here is {gpu.name}"
    return None


def _loads(sidecar: Sidecar, package: Package) -> bool:
    """Whether the installed version loads the engine's."""
    if sidecar.version == package.version or not sidecar.version_compatible:
        return sidecar.version == package.version
    built, here = (tuple(int(part) for part in text.split(".")[:2]) for text in (sidecar.version, package.version))
    return built <= here and here[0] - built[0] <= 1


def engines_of(bundle: Bundle, graph: str, precision: str) -> list[BuiltEngine]:
    """The engines of a graph in the bundle, for whatever machine; a damaged sidecar counts as none."""
    found = []
    for path in sorted((bundle.folder / FOLDER).glob(f"*/{graph}.{precision}.json")):
        try:
            sidecar = _SIDECAR.validate_json(path.read_bytes())
            sidecar.options.profiles.of(sidecar.inputs)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if sidecar.format_version == FORMAT_VERSION:
            found.append(BuiltEngine(path.with_suffix(".engine"), sidecar))
    return found


def find_engine(bundle: Bundle, graph: str, precision: str, package: Package, gpu: Gpu | None) -> BuiltEngine:
    """The engine of a graph that fits this machine.

    Raises:
        CheckpointError: there is none, and what is wrong with one that is there.
    """
    found = engines_of(bundle, graph, precision)
    reasons = [mismatch(engine.sidecar, bundle, package, gpu) for engine in found]
    for engine, reason in zip(found, reasons, strict=True):
        if reason is None:
            return engine
    folder = bundle.folder
    hint = f"tcl export --trt --model {folder} --precision {precision}"
    if not found:
        raise CheckpointError(f"{folder}: has no engine of {graph} {precision}", hint=hint)
    raise CheckpointError(f"{found[0].path}: {reasons[0]}", hint=hint)


def sources(bundle: Bundle, graph: str, precision: str) -> dict[str, str]:
    """SHA-256 of the ONNX file of a graph, and of its weights where they are in a file of their own."""
    entry = bundle.graphs.get(graph, {}).get(precision, {})
    return {str(name): bundle.hashes[name] for name in (entry.get("file"), entry.get("data")) if name}
