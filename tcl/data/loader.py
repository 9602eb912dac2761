"""Training batches: a pure function of (seed, epoch, position), whatever the number of workers, and after a resume.

Shapes: B images of a batch, H x W pixels, S token ids of its longest caption.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import random
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tcl.data.augment import AugmentName, Transform, build_transform
from tcl.data.captions import CaptionTokenizer
from tcl.data.images import ImageError, decode
from tcl.data.index import PairIndex
from tcl.errors import DataError

_TRIES = 20


@dataclass
class Batch:
    """Two views of B images and one caption each.

    Args:
        images: first view, [B, 3, H, W], uint8.
        images_aug: second view, [B, 3, H, W], uint8.
        input_ids: [B, S], int64.
        attention_mask: [B, S], bool, True at tokens.
        sample_ids: B paths or references of the images.
        bad: images that could not be read and were replaced: `{"image", "reason"}`.
    """

    images: torch.Tensor
    images_aug: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sample_ids: list[str]
    bad: list[dict[str, str]]

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to a device, without waiting for the copy where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, when the batch will go to a GPU."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            images=function(self.images),
            images_aug=function(self.images_aug),
            input_ids=function(self.input_ids),
            attention_mask=function(self.attention_mask),
        )


class PairLoader:
    """Endless, resumable batches of an index.

    Every epoch visits the pairs in a new order and takes one random caption of each. An image that cannot be read is
    replaced by another pair, so the size of a batch never changes.

    Args:
        index: the pairs.
        tokenizer: turns captions into ids.
        image_size: side of a view in pixels.
        max_length: token ids kept per caption.
        batch_size: pairs per batch; an index with fewer pairs gives batches of all of them.
        workers: processes that read ahead; 0 reads in this process.
        augment: the transform of both views, see `build_transform`.
        seed: of order, caption choice and augmentation.

    Raises:
        DataError: the index is empty.
    """

    def __init__(
        self,
        index: PairIndex,
        tokenizer: CaptionTokenizer,
        *,
        image_size: int,
        max_length: int,
        batch_size: int,
        workers: int,
        augment: AugmentName,
        seed: int,
    ) -> None:
        if len(index) == 0:
            raise DataError("there are no pairs to load")
        self.batch_size = min(batch_size, len(index))
        self._plan = _EpochPlan(len(index), self.batch_size, seed)
        self._loader = DataLoader(
            _Pairs(index, build_transform(augment, image_size), seed),
            batch_sampler=self._plan,
            collate_fn=_Collate(tokenizer, max_length),
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
        """Batches in an epoch; an incomplete last one is dropped."""
        return len(self._plan)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: counts from 0; decides order, captions and augmentation.
            start: number of batches that are not wanted any more; nothing of them is read.

        Raises:
            DataError: no readable image was found in place of an unreadable one.
        """
        self._plan.epoch, self._plan.start = epoch, start
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def close(self) -> None:
        """Stop the workers; they also stop when the process ends. Asking for batches again starts new ones."""
        iterator = self._loader._iterator  # the DataLoader has no public way to stop persistent workers
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None


def _close_at_exit(loader: weakref.ref[PairLoader]) -> None:
    if (alive := loader()) is not None:
        alive.close()


class _Draw(NamedTuple):
    """One position of an epoch and the row of the index that stands there."""

    epoch: int
    position: int
    row: int


class _EpochPlan(Sampler[list[_Draw]]):
    """Which rows make up which batch; `epoch` and `start` are set before each iteration."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[_Draw]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        order = torch.randperm(self.rows, generator=generator)
        for step in range(self.start, len(self)):
            first = step * self.batch_size
            rows = order[first : first + self.batch_size].tolist()
            yield [_Draw(epoch, first + i, row) for i, row in enumerate(rows)]


class _Sample(NamedTuple):
    image: torch.Tensor
    image_aug: torch.Tensor
    caption: str
    sample_id: str
    bad: list[dict[str, str]]


class _Pairs(Dataset[_Sample | DataError]):
    def __init__(self, index: PairIndex, transform: Transform, seed: int) -> None:
        self.index = index
        self.transform = transform
        self.seed = seed

    def __getitem__(self, draw: _Draw) -> _Sample | DataError:
        """The sample of one position; an error is returned, since raised in a worker it would arrive as a traceback."""
        seed = _mix(self.seed, draw.epoch, draw.position)
        bad: list[dict[str, str]] = []
        for row in self._candidates(draw.row, seed):
            pair = self.index[row]
            try:
                image = decode(pair.image)
            except ImageError as error:
                bad.append({"image": pair.image, "reason": error.reason})
                continue
            with _seeded(seed):
                caption = pair.captions[int(torch.randint(len(pair.captions), ()))]
                return _Sample(self.transform(image), self.transform(image), caption, pair.image, bad)
        return DataError(
            f"no readable image in {len(bad)} tries; the last one was {bad[-1]['image']}: {bad[-1]['reason']}",
            hint="are the image paths right? relative ones start from --images, else from the folder of the data file",
        )

    def _candidates(self, row: int, seed: int) -> Iterator[int]:
        """The row itself, then others in case it cannot be read: all of a small index, `_TRIES` of a large one."""
        yield row
        rows = range(len(self.index))
        others = random.Random(seed).sample(rows, min(_TRIES, len(rows)))
        yield from (other for other in others if other != row)


class _Collate:
    def __init__(self, tokenizer: CaptionTokenizer, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, samples: Sequence[_Sample | DataError]) -> Batch | DataError:
        good: list[_Sample] = []
        for sample in samples:
            if isinstance(sample, DataError):
                return sample
            good.append(sample)
        input_ids, attention_mask = self.tokenizer([sample.caption for sample in good], self.max_length)
        return Batch(
            images=torch.stack([sample.image for sample in good]),
            images_aug=torch.stack([sample.image_aug for sample in good]),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask).bool(),
            sample_ids=[sample.sample_id for sample in good],
            bad=[entry for sample in good for entry in sample.bad],
        )


def _mix(*numbers: int) -> int:
    """A seed of 63 bits from several numbers; neighbouring ones give unrelated seeds."""
    text = ":".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and put its state back afterwards."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a stop of the job go to the whole process group: the training decides what happens, not its workers.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler inherited from the training would keep workers alive when the ending process terminates them.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
