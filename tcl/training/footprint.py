"""What a run will take: memory and time, from one small step that is measured, before the first real one."""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tcl.errors import ConfigError
from tcl.machine.memory import format_bytes

OPTIMIZER_COPIES = 2  # AdamW keeps two averages of each trained weight
HEAP = 1.35  # RAM that a step takes for each byte of its tensors: the heap keeps gaps (benchmarks/footprint.py)
TIMED_SAMPLES = 64  # in the step that is timed, at most; by then a larger batch is hardly faster per sample
TIMED_SECONDS = 15.0  # that such a step may take
LARGEST_BATCH = 4096  # beyond it the terms that grow with the square of the batch count


@dataclass(frozen=True)
class Footprint:
    """Memory in bytes and time in seconds of training one model.

    Activations, and all else that lives during a step, are `step_bytes + sample_bytes * batch size`. The similarities
    within a batch and LMI grow with its square, but slowly: less than 1 GB at 1,024 samples, beside 100 GB.

    Attributes:
        weight_bytes: of the model.
        trained_bytes: those of them that are trained; the gradients are as large.
        beside_bytes: of what stands beside the model: teacher and queues.
        step_bytes: of a step, whatever its batch.
        sample_bytes: of each sample in a step.
        timed_batch: samples in the step that was timed.
        seconds: that it took, forward and backward.
    """

    weight_bytes: int
    trained_bytes: int
    beside_bytes: int
    step_bytes: float
    sample_bytes: float
    timed_batch: int
    seconds: float

    @property
    def fixed_bytes(self) -> float:
        """All that does not depend on the batch."""
        states = (1 + OPTIMIZER_COPIES) * self.trained_bytes  # with the gradients
        return self.weight_bytes + self.beside_bytes + states + self.step_bytes

    def peak(self, batch_size: int) -> float:
        """Bytes at the fullest moment of a step."""
        return self.fixed_bytes + self.sample_bytes * batch_size

    def describe(self, batch_size: int, samples: int, processes: int = 1, rows: str = "pairs") -> list[str]:
        """What to print before the first step.

        Args:
            batch_size: samples per device and forward pass.
            samples: of an epoch.
            processes: that share them.
            rows: what the task calls its samples.
        """
        rate = self.timed_batch / self.seconds * processes
        beside = f", teacher and queues {format_bytes(self.beside_bytes)}" if self.beside_bytes else ""
        return [
            f"Memory     {format_bytes(self.peak(batch_size))} estimated at batch {batch_size}: "
            f"weights {format_bytes(self.weight_bytes)}{beside}, gradients {format_bytes(self.trained_bytes)}, "
            f"optimizer {format_bytes(OPTIMIZER_COPIES * self.trained_bytes)}, "
            f"activations {format_bytes(self.step_bytes + self.sample_bytes * batch_size)}",
            f"Time       {rate:.3g} {rows}/s measured at batch {self.timed_batch}: "
            f"{_duration(samples / rate)} for an epoch of {samples:,} {rows}",
        ]


def measure(
    step: Callable[[int], None],
    model: nn.Module,
    beside: Iterable[nn.Module] = (),
    batch_sizes: tuple[int, int] = (2, 4),
) -> Footprint:
    """Measure a step at two batch sizes.

    Weights and torch's random generators are left as they were, and no gradients.

    Args:
        step: forward and backward of that many samples, which are made up; it updates nothing. Called five times.
        model: what is trained, on its device.
        beside: what else stays in memory: teacher, queues. Weights they share with the model count once.
        batch_sizes: a small one of at least 2 (a batch of 1 has no negatives), and a larger one.
    """
    small, large = batch_sizes
    device = next(model.parameters()).device
    with _without_trace(model, device):
        step(small)  # the first one compiles, and fills the caches of the libraries
        peaks = [_peak_bytes(step, size, model, device) for size in batch_sizes]
        seconds = min(_seconds(step, large, device) for _ in range(2))
    sample_bytes = (peaks[1] - peaks[0]) / (large - small)
    if sample_bytes <= 0:  # hidden by what does not depend on the batch; to be safe, all does
        sample_bytes = peaks[1] / large
    weights, others = _storages([model]), _storages(beside)
    return Footprint(
        weight_bytes=sum(weights.values()),
        trained_bytes=sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
        beside_bytes=sum(size for key, size in others.items() if key not in weights),
        step_bytes=max(peaks[0] - sample_bytes * small, 0),
        sample_bytes=sample_bytes,
        timed_batch=large,
        seconds=seconds,
    )


def time_at(
    footprint: Footprint, step: Callable[[int], None], model: nn.Module, batch_size: int, budget: float
) -> Footprint:
    """The same, with the time of a step of the batch that will be trained, or of `TIMED_SAMPLES` where it has more.

    A batch that needs more than `budget` bytes, or whose step would take too long, is not tried: the time stays as it
    is. Weights, gradients and random generators are left as `measure` leaves them.

    Args:
        footprint: of `measure`.
        step: as there. Called twice.
        model: as there.
        batch_size: samples per forward pass.
        budget: bytes that may be used.
    """
    size = min(batch_size, TIMED_SAMPLES)
    expected = footprint.seconds * size / footprint.timed_batch
    if footprint.timed_batch in (size, batch_size) or expected > TIMED_SECONDS or footprint.peak(size) > budget:
        return footprint
    device = next(model.parameters()).device
    with _without_trace(model, device):
        seconds = min(_seconds(step, size, device) for _ in range(2))
    return replace(footprint, timed_batch=size, seconds=seconds)


def largest_batch(footprint: Footprint, budget: float) -> int:
    """The largest batch, a multiple of 8 from 8 on, whose peak is within `budget` bytes (see `memory_budget`).

    Raises:
        ConfigError: not even a batch of 1 is.
    """
    fits = min(int((budget - footprint.fixed_bytes) // footprint.sample_bytes), LARGEST_BATCH)
    if fits < 1:
        raise ConfigError(
            f"a batch of 1 needs {format_bytes(footprint.peak(1))}, and there are {format_bytes(budget)} to use",
            hint="set train.activation_checkpointing=true, adapt the encoders with train.lora, or take a smaller model",
        )
    return fits - fits % 8 if fits >= 8 else fits


def _storages(modules: Iterable[nn.Module]) -> dict[int, int]:
    """Bytes of each storage behind parameters and buffers, by its address."""
    tensors = itertools.chain.from_iterable(itertools.chain(m.parameters(), m.buffers()) for m in modules)
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@contextmanager
def _without_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards torch's random generators are as they were, and there are no gradients."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    _set_gradients(model, exist=False)


def _set_gradients(model: nn.Module, *, exist: bool) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if exist and parameter.requires_grad else None


def _peak_bytes(step: Callable[[int], None], size: int, model: nn.Module, device: torch.device) -> float:
    """Most bytes at once in a step of `size` samples, beyond those before it; gradients exist and are added to."""
    _set_gradients(model, exist=True)  # so that they are counted once, in `Footprint.fixed_bytes`
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(size)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveMemory() as memory:
        step(size)
    return memory.peak * HEAP


def _seconds(step: Callable[[int], None], size: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        step(size)
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    step(size)
    end_event.record()
    end_event.synchronize()
    return start_event.elapsed_time(end_event) / 1000


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operation, which may be in lists; sparse ones are small."""
    for value in values:
        if isinstance(value, Tensor):
            if value.layout == torch.strided:
                yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class _LiveMemory(TorchDispatchMode):
    """Follows the memory of each tensor that an operation makes, backward included, until it is freed.

    Saved activations alone would miss what backward needs, and the layers that checkpointing computes again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, weakref.ref[Any]] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((*args, *kwargs.values()))}
        for tensor in _tensors((results,)):
            if tensor.untyped_storage()._cdata not in given:  # a view has the memory of what it was given
                self._add(tensor.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self.live[key]

        self.live[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
