"""ONNX files to TensorRT engines: parse, give every input its range of shapes, build. One path for both packages.

The networks are strongly typed: TensorRT computes in the types that the graph has, and nothing else is asked of it. The
phases of a build run inside one another; `Phases` makes one figure of them.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

from tcl.encoders.tensorrt.cuda import Gpu, current_gpu
from tcl.encoders.tensorrt.package import Package, one_line
from tcl.encoders.tensorrt.profiles import Axes, Profiles
from tcl.errors import CheckpointError, TclError, UsageError
from tcl.files.atomic import shared_file
from tcl.files.cache import cache_folder

Progress = Callable[[str, float], object]
"""Told the phase and the share that is done, from 0 to 1."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are running, and the share of the whole that is done.

    A phase is one step of the phase that it runs in. The share never falls, though builders repeat phases.

    Args:
        progress: told after each step.
        interrupted: whether the build shall stop.
    """

    def __init__(self, progress: Progress, interrupted: Callable[[], bool] = lambda: False) -> None:
        self._progress, self._interrupted, self._lock = progress, interrupted, Lock()
        self._running: dict[str, _Phase] = {}
        self._share = 0.0
        self.stopped_by: Exception | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins."""
        with self._lock:
            self._running[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """Step number `step` of a phase is done; False asks the builder to stop."""
        with self._lock:
            if phase := self._running.get(name):
                phase.done = min(step + 1, phase.steps)
            return self._report(name)

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._running.pop(name, None)

    def _report(self, name: str) -> bool:
        # An exception cannot pass through the builder: it is kept, and the build cancelled.
        try:
            tops = [name for name, phase in self._running.items() if phase.parent not in self._running]
            self._share = max(self._share, min(max(map(self._done, tops), default=0.0), 1.0))
            self._progress(name, self._share)
        except Exception as error:
            self.stopped_by = self.stopped_by or error
        return self.stopped_by is None and not self._interrupted()

    def _done(self, name: str) -> float:
        phase = self._running[name]
        if phase.done == phase.steps:
            return 1.0
        inside = [self._done(child) for child, other in self._running.items() if other.parent == name]
        return (phase.done + max(inside, default=0.0)) / phase.steps


def monitor(trt: Any, phases: Phases) -> Any:
    """`phases` as the monitor that TensorRT calls."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only sets a flag while the block runs, and does what it always does when it ends.

    The exception would otherwise arise in whatever Python the builder calls just then, which swallows it.

    Yields:
        Whether it was pressed.
    """
    if current_thread() is not main_thread():  # which alone gets signals
        yield lambda: False
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


AGAIN = "export the model again"
FLOAT8_FROM = (8, 9)  # compute capability of Ada, the first with 8-bit floats
_BEYOND = re.compile(r"^Profile k|values for profile|dimensions not compatible")


@dataclass(frozen=True)
class BuildOptions:
    """How engines are built.

    Attributes:
        profiles: shapes that they take.
        workspace: bytes of GPU memory that a layer may use for itself; None for TensorRT's limit, all there is.
        hardware_compatible: run on every GPU from Ampere on rather than on this kind only, if slower.
        version_compatible: be loaded by later TensorRT too.
    """

    profiles: Profiles
    workspace: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


@dataclass(frozen=True)
class SerializedEngine:
    """A built engine.

    Attributes:
        content: what goes to its file.
        inputs: axes of each input.
    """

    content: bytes
    inputs: dict[str, Axes]


def check_options(package: Package, options: BuildOptions, precisions: Sequence[str] = ()) -> Gpu | None:
    """The GPU to build engines of these precisions for; None where they are not tied to one.

    Raises:
        UsageError: this TensorRT cannot build here, or not so, or not in one of the precisions.
    """
    if package.flavour == "rtx":
        for name, wanted in (
            ("--hardware-compatible", options.hardware_compatible),
            ("--version-compatible", options.version_compatible),
        ):
            if wanted:
                reason = "its engines run on several GPUs anyway" if "hard" in name else "it has no lean runtime"
                raise UsageError(f"{name}: {package.title} knows no such engines: {reason}", hint=f"leave {name} out")
        return None
    gpu = current_gpu()
    if gpu is None:
        raise UsageError(
            f"{package.title} builds engines on the GPU that they are for, and sees none here",
            hint="build there (with cuda-python installed), or pip install '.[trt-rtx]' instead",
        )
    if "fp8" in precisions:
        _check_float8(gpu, options)
    return gpu


def _check_float8(gpu: Gpu, options: BuildOptions) -> None:
    """Refuse what would be an engine for GPUs that have no 8-bit floats."""
    if options.hardware_compatible:
        raise UsageError(
            "--hardware-compatible: GPUs from Ampere on are to run the engines, and Ampere has no 8-bit floats",
            hint="leave it out, or fp8",
        )
    if tuple(map(int, gpu.compute_capability.split("."))) < FLOAT8_FROM:
        raise UsageError(
            f"fp8: {gpu.name} has no 8-bit floats, which came with compute capability 8.9; it has "
            f"{gpu.compute_capability}",
            hint="use --precision fp16 or int8 there",
        )


def build_plan(
    package: Package,
    path: Path,
    precision: str,
    options: BuildOptions,
    progress: Progress = lambda phase, share: None,
) -> SerializedEngine:
    """Build the engine of one ONNX file.

    Args:
        package: that builds.
        path: of the file.
        precision: of the graph.
        options: see there.
        progress: told how far it is. An exception in it, or Ctrl-C, cancels the build and comes out here.

    Raises:
        CheckpointError: TensorRT does not take the file; names the node.
        UsageError: the profile or the workspace does not fit the graph.
        TclError: the build failed.
    """
    trt = package.trt
    with package.messages.kept() as messages:
        try:
            builder = trt.Builder(package.logger)
        except TypeError as error:  # how a failing constructor shows
            raise TclError(f"{package.title} cannot start here: {one_line(messages)}") from error
        # Flags changed their numbers between versions; from 11 on, every network is strongly typed.
        typed = package.flavour == "tensorrt" and package.major < 11
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0)
        parser = trt.OnnxParser(network, package.logger)
        if not parser.parse_from_file(str(path)):
            raise CheckpointError(f"{path}: {package.title} {_refused(parser, messages)}", hint=AGAIN)
        if not network.num_outputs:  # an empty file is a valid one of the format
            raise CheckpointError(f"{path}: holds no graph", hint=AGAIN)
        config = builder.create_builder_config()
        if precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # which keeps 10 bits of a float32, and is on by default
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        inputs = _set_profile(builder, network, config, options.profiles, path, messages)
        timings = _use_timings(package, config)
        with interrupts_deferred() as interrupted:
            phases = Phases(progress, interrupted)
            observer = monitor(trt, phases)  # TensorRT holds no reference to it
            config.progress_monitor = observer
            content = builder.build_serialized_network(network, config)
        if phases.stopped_by is not None:
            raise phases.stopped_by
        if content is None:
            raise _failed(package, path, messages)
        _check_profile(path, messages)
        if timings is not None:
            _keep_timings(timings, config)
        return SerializedEngine(bytes(content), inputs)


def _refused(parser: Any, messages: list[str]) -> str:
    """Why a file was not parsed, by node."""
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    if not errors or not errors[0].node_operator():
        return f"cannot read it: {one_line(errors[0].desc().splitlines() if errors else messages)}"
    nodes = [f"{error.node_name()} ({error.node_operator()})" for error in errors]
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    reason = [line for line in errors[0].desc().splitlines() if not line.startswith("Invalid Node")]
    if reason in ([], ["false"]):  # its way of saying that it knows no such operator
        return f"does not support node {nodes[0]}{more}"
    return f"does not take node {nodes[0]}{more}: {one_line(reason)}"


def _set_profile(
    builder: Any, network: Any, config: Any, profiles: Profiles, path: Path, messages: list[str]
) -> dict[str, Axes]:
    """Tell the ranges of the inputs; the axes of each."""
    inputs: dict[str, Axes] = {}
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        inputs[tensor.name] = tuple(
            size if size >= 0 else tensor.get_dimension_name(axis) for axis, size in enumerate(tuple(tensor.shape))
        )
    profile = builder.create_optimization_profile()
    for name, ranges in profiles.of(inputs).items():
        smallest, usual, largest = zip(*ranges, strict=True)
        profile.set_shape(name, smallest, usual, largest)
    # Neither call raises; both only return that they refuse.
    if config.add_optimization_profile(profile) < 0:
        raise UsageError(f"{path}: the profile does not fit: {one_line(messages)}", hint="change --profile")
    return inputs


def _check_profile(path: Path, messages: list[str]) -> None:
    beyond = [text for text in messages if _BEYOND.search(text)]
    if beyond:
        raise UsageError(
            f"{path}: the graph cannot do all shapes of the profile: {one_line(beyond)}",
            hint="lower --profile length=..., which may not pass the model's longest text",
        )


def _failed(package: Package, path: Path, messages: list[str]) -> TclError:
    _check_profile(path, messages)
    reason = one_line(messages)
    if "within workspace limit" in reason:
        return UsageError(f"{path}: no kernel fits into the workspace", hint="raise --workspace, or leave it out")
    return TclError(f"{path}: {package.title} cannot build it: {reason}")


def _use_timings(package: Package, config: Any) -> Path | None:
    """Let the builder use what earlier builds have measured; the file of these timings.

    TensorRT for RTX measures when an engine is loaded, and takes no such file.
    """
    gpu = current_gpu()
    if package.flavour == "rtx" or gpu is None:
        return None
    path = cache_folder() / "timings" / f"{slug(gpu.name)}-{package.flavour}{package.version}.bin"
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    cache = config.create_timing_cache(content) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):  # of another device, or damaged
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def _keep_timings(path: Path, config: Any) -> None:
    cache = config.get_timing_cache()
    with suppress(OSError), shared_file(path) as temporary:  # builds work without
        temporary.write_bytes(memoryview(cache.serialize()))


def slug(name: str) -> str:
    """A name as a part of a file name: `NVIDIA H200` is `nvidia-h200`."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
