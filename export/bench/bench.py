"""`tcl bench`: every way in which this machine can compute a model's vectors, measured side by side.

Each way has a process of its own, and all take turns, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import math
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bench import worker as bench_worker
from export.bench.ways import check_same_model
from export.bench.worker import KINDS, Kind, Way
from export.verify.checks import COSINES
from tcl.data.images.decode import ImageError, decode
from tcl.data.inputs.listing import list_inputs
from tcl.data.scenes.scenes import scene_rows
from tcl.encoders.fastest import FORMAT_VERSION, machine
from tcl.errors import DataError, TclError
from tcl.machine.processes import available_cores, begin_worker

SAMPLES = 32  # images, and as many texts
TURNS = 5
FEWEST_TURNS = 2  # where a call takes so long that all turns would take LONGEST times what was asked for
LONGEST = 4
LATENCY_SHARE = 0.5  # of the time of a batch size
NEAR = {"fp32": 0.99999} | COSINES
"""Smallest cosine to the reference with which a way counts as verified."""


@dataclass(frozen=True)
class BenchPlan:
    """What is measured.

    Attributes:
        batch_sizes: inputs per call.
        seconds: for each way, kind and batch size, in turns.
        images: a source of real ones; None takes built-in scenes.
        end_to_end: rows to read, decode, encode and write as well; 0 for none.
        workers: threads that decode then.
    """

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    seconds: float = 3.0
    images: str | None = None
    end_to_end: int = 0
    workers: int = 4

    def steps(self, ways: int) -> int:
        """What `bench` tells `progress` of, for so many ways."""
        return ways * (1 + len(KINDS) * (len(self.batch_sizes) * TURNS + 1)) + 1


@dataclass
class _Lane:
    """A way, its process, and what was found; `error` ends it, a batch that is too large does not."""

    way: Way
    pool: ProcessPoolExecutor
    facts: dict[str, Any] = field(default_factory=dict)
    rates: dict[tuple[Kind, int], list[float]] = field(default_factory=dict)
    too_large: set[tuple[Kind, int]] = field(default_factory=set)
    found: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the process; None when that failed, now or before."""
        if self.error is not None:
            return None
        try:
            result, self.error = self.pool.submit(bench_worker.attempt, function, *arguments).result()
        except BrokenProcessPool:
            self.error = "its process was killed, perhaps for want of memory"
            return None
        return result


def bench(
    ways: Sequence[Way],
    plan: BenchPlan,
    verified: Callable[[str], bool] = lambda precision: True,
    progress: Callable[[str], object] = lambda step: None,
) -> dict[str, Any]:
    """Measure all ways, the first being the reference.

    Args:
        ways: from `find_ways`.
        plan: what.
        verified: whether the bundle was in a precision, when it was exported.
        progress: told what is measured next.

    Returns:
        The record, as plain values; see `docs/bench.md`.

    Raises:
        TclError: the reference cannot be measured.
        UsageError: the ways are not of one model.
    """
    images, texts = samples(plan.images)
    with ExitStack() as stack:
        lanes = [_Lane(way, stack.enter_context(_process())) for way in ways]
        for lane in lanes:
            progress(f"opening {lane.way.name}")
            lane.facts = lane.call(bench_worker.open_way, lane.way, images, texts, max(2, available_cores())) or {}
        reference = lanes[0]
        if reference.error:
            raise TclError(f"{reference.way.name} cannot be measured: {reference.error}")
        for lane in lanes:
            if lane.facts:
                check_same_model(
                    lane.way.model, lane.facts["model_hash"], reference.way.model, reference.facts["model_hash"]
                )
        _throughput(lanes, plan, progress)
        for lane in lanes:
            _alone(lane, plan, progress)
        flops = reference.call(bench_worker.flops) or dict.fromkeys(KINDS)
        progress("measuring the peak of matrix products")
        peaks: dict[str, dict[str, float]] = {}
        for lane in lanes:  # the first of each device that can tell
            if not peaks.get(lane.way.device):
                peaks[lane.way.device] = lane.call(bench_worker.matmul_peaks) or {}
    return {
        "format_version": FORMAT_VERSION,
        "machine": machine(),
        "model_hash": reference.facts["model_hash"],
        "reference": reference.way.name,
        "image_size": reference.facts["image_size"],
        "tokens": reference.facts["tokens"],
        "flops": flops,
        "peaks": peaks,
        "results": [_result(lane, reference, flops, peaks, verified) for lane in lanes],
    }


def samples(source: str | None) -> tuple[list[str], list[str]]:
    """Images, those of `source` that can be read, or built-in scenes; and captions of scenes.

    Raises:
        DataError: none can be read.
        UsageError: there is no such source.
    """
    rows = list(scene_rows(f"scenes:val:{SAMPLES}"))
    texts = [captions[0] for _, captions in rows]
    if source is None:
        return [reference for reference, _ in rows], texts
    inputs = list_inputs(source, "image")
    images = []
    for row in range(len(inputs)):
        with suppress(ImageError):
            decode(inputs.location(row))
            images.append(inputs.location(row))
        if len(images) == SAMPLES:
            break
    if not images:
        raise DataError(f"{source}: no image can be read", hint="tcl data check names the faults")
    return images, texts


def _throughput(lanes: Sequence[_Lane], plan: BenchPlan, progress: Callable[[str], object]) -> None:
    for kind in KINDS:
        for batch in plan.batch_sizes:
            left = {lane.way: plan.seconds * LONGEST for lane in lanes}
            for turn in range(TURNS):
                for lane in lanes:
                    if turn < FEWEST_TURNS or left[lane.way] > 0:
                        left[lane.way] -= _turn(lane, kind, batch, plan.seconds / TURNS)
                    progress(f"{lane.way.name}, {kind}s, {batch} at once")


def _turn(lane: _Lane, kind: Kind, batch: int, seconds: float) -> float:
    """The seconds it took; infinity when there is no use in another one."""
    found: tuple[float, float] | None = None
    if (kind, batch) not in lane.too_large:
        found = lane.call(bench_worker.take_turn, kind, batch, seconds)
    if found is None:
        lane.too_large.add((kind, batch))
        return math.inf
    lane.rates.setdefault((kind, batch), []).append(found[0])
    return found[1]


def _alone(lane: _Lane, plan: BenchPlan, progress: Callable[[str], object]) -> None:
    """What does not take turns: memory, the whole way from file to file, then single inputs."""
    lane.found |= lane.call(bench_worker.memory) or {}
    if plan.end_to_end and plan.images is not None:
        arguments = (plan.images, plan.end_to_end, plan.batch_sizes[-1], plan.workers)
        lane.found["end_to_end"] = lane.call(bench_worker.end_to_end, *arguments)
    lane.call(bench_worker.open_single)
    latency = {}
    for kind in KINDS:
        progress(f"{lane.way.name}, {kind}s, one by one")
        calls = lane.call(bench_worker.single_calls, kind, plan.seconds * LATENCY_SHARE)
        latency[kind] = _spread(calls) if calls else None
    lane.found["latency"] = latency


def _result(
    lane: _Lane,
    reference: _Lane,
    flops: Mapping[str, float | None],
    peaks: Mapping[str, Any],
    verified: Callable[[str], bool],
) -> dict[str, Any]:
    way = lane.way
    cosines = {kind: _cosines(lane.facts, reference.facts, kind) for kind in KINDS}
    near = all(found is not None and found["min"] >= NEAR[way.precision] for found in cosines.values())
    throughput = [
        {"kind": kind, "batch": batch, **_spread(rates)}
        for (kind, batch), rates in lane.rates.items()
        if len(rates) >= FEWEST_TURNS
    ]
    # No product of 8-bit integers is timed, nor one of float16 on a CPU: theirs is a share of the float32 peak, and may
    # be above 1.
    own = peaks.get(way.device, {})
    peak = own.get(way.precision, own.get("fp32"))
    share: dict[str, float | None] = {}
    for kind in KINDS:
        best = max((float(rate["median"]) for rate in throughput if rate["kind"] == kind), default=None)
        operations = flops[kind]
        share[kind] = best * operations / peak if best and operations and peak else None
    return {
        **way._asdict(),
        "error": lane.error,
        "lanes": lane.facts.get("lanes"),
        "cosine": cosines,
        "verified": near and lane.error is None and (way.bundle is None or verified(way.precision)),
        "memory": None,
        "device_memory": None,
        "latency": None,
        **lane.found,
        "throughput": throughput,
        "share_of_peak": share,
    }


def _cosines(facts: Mapping[str, Any], reference: Mapping[str, Any], kind: str) -> dict[str, float] | None:
    if not facts:
        return None
    own: NDArray[np.float64] = facts["vectors"][kind].astype(np.float64)
    other: NDArray[np.float64] = reference["vectors"][kind].astype(np.float64)
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
    found = (own * other).sum(axis=1) / np.maximum(norms, 1e-12)
    if not np.isfinite(found).all():
        return {"min": -1.0, "mean": -1.0}  # JSON knows no NaN; nothing is farther
    return {"min": float(found.min()), "mean": float(found.mean())}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and what is above a quarter and three quarters of the values."""
    low, high = np.quantile(values, (0.25, 0.75))
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


@contextmanager
def _process() -> Iterator[ProcessPoolExecutor]:
    # Ctrl-C ends it at once and without a word: the parent would otherwise wait until torch is imported.
    context, ctrl_c = get_context("spawn"), (signal.SIG_DFL,)
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=begin_worker, initargs=ctrl_c)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
