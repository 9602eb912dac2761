"""Training batches: a pure function of (seed, epoch, position), whatever the number of workers, and after a resume.

An optimizer step is made of K slices of B samples each: K = processes x forward passes per step. Slice k of step s
holds the positions from (s K + k) B on in the order of the epoch, whoever computes it.
"""

from __future__ import annotations

import atexit
import math
import os
import random
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tcl.data.images.decode import ImageError
from tcl.data.sources.find import SourceRows
from tcl.errors import DataError, UsageError, without_secrets
from tcl.machine.seeding import mix, seeded

_TRIES = 20


@dataclass
class Batch:
    """What the batches of every task have; a task adds its tensors.

    Args:
        sample_ids: what names each of the B samples: paths or references of images.
        bad: images that could not be read and were replaced: `{"image", "reason"}`.
    """

    sample_ids: list[str]
    bad: list[dict[str, str]]

    def to(self, device: torch.device | str) -> Self:
        """Copy the tensors to a device, without waiting for the copy where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Called by the DataLoader, when the batch will go to a GPU."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


class Samples(Protocol):
    """The rows that a task trains on."""

    @property
    def parts(self) -> Sequence[SourceRows]:
        """The rows of each source, with its weight."""

    def __len__(self) -> int: ...

    def load(self, row: int) -> Any:
        """One sample, with its random choices drawn from torch's CPU generator.

        Raises:
            ImageError: its image cannot be read; another row will take its place.
        """

    def name(self, row: int) -> str:
        """What names the row in reports."""

    def collate(self, samples: list[Any], sample_ids: list[str], bad: list[dict[str, str]]) -> Batch:
        """A batch of samples."""


class TrainLoader:
    """Endless, resumable batches.

    Every epoch visits the samples in a new order. One that cannot be read is replaced by another, so the size of a
    batch never changes.

    Args:
        samples: the rows; with weights, see `tcl.data.pairs.table`.
        batch_size: B; with fewer samples than a step takes, batches are smaller.
        workers: processes that read ahead; 0 reads in this process.
        seed: of order and of all that `samples.load` draws.
        slices: K, of a whole step.
        own: the numbers, of K, of the slices that this process computes.

    Raises:
        DataError: there are no samples.
        UsageError: a weight is so small that its source is never visited.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        slices: int = 1,
        own: Sequence[int] = (0,),
    ) -> None:
        if len(samples) == 0:
            raise DataError("there is nothing to load")
        for part in samples.parts:
            if not _visits(part):
                raise UsageError(
                    f"{part.source}: its weight leaves none of its {part.stop - part.start} rows",
                    hint="raise the weight, or leave the source out",
                )
        self.samples = samples
        visits = sum(_visits(part) for part in samples.parts)
        self.batch_size = max(min(batch_size, visits // slices), 1)
        self._plan = _EpochPlan(samples.parts, visits, self.batch_size, slices, own, seed)
        self._loader = DataLoader(
            _Drawn(samples, seed),
            batch_sampler=self._plan,
            collate_fn=_Collate(samples),
            num_workers=workers,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else iterating would draw from the generator of the training
        )
        if workers:
            # Before multiprocessing's own clean-up, which kills the workers, and torch then reports that they died.
            atexit.register(_close_at_exit, weakref.ref(self))

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; an incomplete last one is dropped."""
        return self._plan.steps

    @property
    def samples_per_step(self) -> int:
        """Samples in a step, those of all processes together."""
        return self._plan.slices * self.batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """This process's batches of an epoch, as many per step as it has slices.

        Args:
            epoch: counts from 0; decides order and all random choices.
            start: number of steps that are not wanted any more; nothing of them is read.

        Raises:
            DataError: no readable sample was found in place of an unreadable one.
        """
        self._plan.epoch, self._plan.start = epoch, start
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def one_by_one(self, epoch: int, step: int) -> Iterator[Any]:
        """The samples of this process in a step, each as a batch of its own, read in this process."""
        self._plan.epoch, self._plan.start = epoch, step
        draw, collate = _Drawn(self.samples, self._plan.seed), _Collate(self.samples)
        for position in chain.from_iterable(islice(self._plan, len(self._plan.own))):
            batch = collate([draw[position]])
            if isinstance(batch, Batch):
                yield batch

    def close(self) -> None:
        """Stop the workers; they also stop when the process ends. Asking for batches again starts new ones."""
        iterator = self._loader._iterator  # the DataLoader has no public way to stop persistent workers
        if iterator is not None:
            workers = list(getattr(iterator, "_workers", []))
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None
            for worker in workers:  # one that hangs does not listen to SIGTERM
                if worker.is_alive():
                    worker.kill()


def _close_at_exit(loader: weakref.ref[TrainLoader]) -> None:
    if (alive := loader()) is not None:
        alive.close()


def _visits(part: SourceRows) -> int:
    """How often the rows of a part are visited in an epoch, all together."""
    return round((part.stop - part.start) * part.weight)


class _Draw(NamedTuple):
    """One position of an epoch and the row that stands there."""

    epoch: int
    position: int
    row: int


class _EpochPlan(Sampler[list[_Draw]]):
    """Which rows make up which batch; `epoch` and `start` are set before each iteration."""

    epoch: int
    start: int

    def __init__(
        self, parts: Sequence[SourceRows], visits: int, batch_size: int, slices: int, own: Sequence[int], seed: int
    ) -> None:
        self.parts = parts
        self.batch_size = batch_size
        self.slices = slices
        self.own = own
        self.seed = seed
        self.steps = max(visits // (slices * batch_size), 1)

    def __iter__(self) -> Iterator[list[_Draw]]:
        epoch = self.epoch
        order = self._order(torch.Generator().manual_seed(mix(self.seed, epoch)))
        for step in range(self.start, self.steps):
            for number in self.own:
                first = (step * self.slices + number) * self.batch_size
                # Only a run with fewer samples than slices comes round to the beginning again.
                positions = torch.arange(first, first + self.batch_size) % len(order)
                yield [_Draw(epoch, first + i, row) for i, row in enumerate(order[positions].tolist())]

    def _order(self, generator: torch.Generator) -> Tensor:
        """All visits of an epoch, shuffled: each row of a part `weight` times, some once more when it is no integer."""
        if all(part.weight == 1 for part in self.parts):
            return torch.randperm(self.parts[-1].stop, generator=generator)
        rows = []
        for part in self.parts:
            size = part.stop - part.start
            whole = math.floor(part.weight)
            rows += [torch.arange(part.start, part.stop)] * whole
            rows.append(part.start + torch.randperm(size, generator=generator)[: _visits(part) - whole * size])
        visits = torch.cat(rows)
        return visits[torch.randperm(len(visits), generator=generator)]


class _Loaded(NamedTuple):
    sample: Any
    sample_id: str
    bad: list[dict[str, str]]


class _Drawn(Dataset[_Loaded | DataError]):
    def __init__(self, samples: Samples, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __getitem__(self, draw: _Draw) -> _Loaded | DataError:
        """The sample of one position; an error is returned, since raised in a worker it would arrive as a traceback."""
        seed = mix(self.seed, draw.epoch, draw.position)
        bad: list[dict[str, str]] = []
        for row in self._candidates(draw.row, seed):
            name = without_secrets(self.samples.name(row))  # for logs and lists
            try:
                with seeded(seed):
                    return _Loaded(self.samples.load(row), name, bad)
            except ImageError as error:
                bad.append({"image": name, "reason": error.reason})
            except DataError as error:  # of every image, such as a full cache folder: no other can take its place
                return error
        return DataError(
            f"no readable image in {len(bad)} tries; the last one was {bad[-1]['image']}: {bad[-1]['reason']}",
            hint="are the image paths right? relative ones start from --images, else from the folder of the data file",
        )

    def __getitems__(self, draws: list[_Draw]) -> list[_Loaded | DataError]:
        """The samples of a batch, up to the first error: the rest would only wait for a remote that is gone."""
        loaded: list[_Loaded | DataError] = []
        for draw in draws:
            loaded.append(self[draw])
            if isinstance(loaded[-1], DataError):
                break
        return loaded

    def _candidates(self, row: int, seed: int) -> Iterator[int]:
        """The row itself, then others in case it cannot be read: all of a few, `_TRIES` of many."""
        yield row
        rows = range(len(self.samples))
        others = random.Random(seed).sample(rows, min(_TRIES, len(rows)))
        yield from (other for other in others if other != row)


class _Collate:
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __call__(self, loaded: Sequence[_Loaded | DataError]) -> Batch | DataError:
        good: list[_Loaded] = []
        for item in loaded:
            if isinstance(item, DataError):
                return item
            good.append(item)
        bad = [entry for item in good for entry in item.bad]
        return self.samples.collate([item.sample for item in good], [item.sample_id for item in good], bad)


def _start_worker(_worker: int) -> None:
    # Ctrl-C and a stop of the job go to the whole process group: the training decides what happens, not its workers.
    os.setpgid(0, 0)
    # Some schedulers send SIGTERM to every process of a job; without workers, the training could not end in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
