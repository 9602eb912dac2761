"""Inputs of a batch to arrays, by a pool of threads: images decoded, texts cleaned, tokenised and sorted by length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcl.data.images.decode import ImageError
from tcl.data.inputs.listing import Inputs
from tcl.data.processor import Processor
from tcl.data.tokenizer import clean_caption
from tcl.embedding.plan import Plan, Work
from tcl.errors import TclError


class Prepared(NamedTuple):
    """A batch as the encoder takes it.

    Attributes:
        rows: numbers of its inputs that could be read [B].
        arrays: uint8 pixels [B, 3, H, W]; or token ids and mask [B, S].
        failed: the others, with the reason.
        seconds: that threads have spent on it.
    """

    rows: NDArray[np.int64]
    arrays: tuple[NDArray[Any], ...]
    failed: list[tuple[int, str]]
    seconds: float


class Reader:
    """Prepares batches.

    Args:
        inputs: what is read.
        processor: of the model.
        plan: which inputs share a batch.
        pool: of threads that decode; many inputs of a batch at once.
    """

    def __init__(self, inputs: Inputs, processor: Processor, plan: Plan, pool: Executor) -> None:
        self.inputs, self.processor, self.plan, self._pool = inputs, processor, plan, pool

    def prepare(self, work: Work) -> Iterator[tuple[int, Callable[[], Prepared]]]:
        """Start on batches of a window.

        Yields:
            the number of each, and a function that waits for it.
        """
        if self.inputs.kind == "text":
            window = _TextWindow(self, self.plan.rows_of(work.window))
            for batch in work.batches:
                yield batch, partial(window.batch, batch - work.window * self.plan.window)
        else:
            for batch in work.batches:
                yield batch, self._images(batch)

    def _images(self, batch: int) -> Callable[[], Prepared]:
        start = batch * self.plan.batch_size
        rows = np.arange(start, start + self.plan.size_of(batch))
        pixels = np.empty((len(rows), 3, *self.processor.image_size), np.uint8)
        loading = [self._pool.submit(self._image, int(row), place) for row, place in zip(rows, pixels, strict=True)]

        def wait() -> Prepared:
            outcomes = [each.result() for each in loading]
            failed = [(int(row), why) for row, (why, _) in zip(rows, outcomes, strict=True) if why is not None]
            good = np.array([why is None for why, _ in outcomes])
            seconds = sum(spent for _, spent in outcomes)
            return Prepared(rows[good], (pixels if not failed else pixels[good],), failed, seconds)

        return wait

    def _image(self, row: int, place: NDArray[np.uint8]) -> tuple[str | None, float]:
        """Decode one image into its place in the batch; why that failed, and the seconds it took."""
        begun, reason = time.perf_counter(), None
        try:
            self.processor.image_into(self.inputs.location(row), place)
        except ImageError as error:  # no other: a full cache folder is no matter of this image
            reason = error.reason
        except MemoryError as error:
            hint = "use fewer --workers, or stop what else uses it; the same command goes on"
            raise TclError(f"out of memory while {self.inputs.ids[row]} was read", hint=hint) from error
        return reason, time.perf_counter() - begun

    def tokens(self, rows: range) -> tuple[list[NDArray[np.int64] | None], float]:
        """The tokens of texts, None of a text without words; and the seconds that took."""
        begun = time.perf_counter()
        texts = [self.inputs.values[row] for row in rows]
        ids, mask = self.processor.texts(texts)
        lengths = mask.sum(axis=1)
        found = [ids[number, : lengths[number]] if clean_caption(text) else None for number, text in enumerate(texts)]
        return found, time.perf_counter() - begun


class _TextWindow:
    """The texts of a window, tokenised once, in batches of like length."""

    def __init__(self, reader: Reader, rows: range) -> None:
        self._rows, self._size = rows, reader.plan.batch_size
        self._pad = reader.processor.tokenizer.pad_id
        self._loading: list[Future[tuple[list[NDArray[np.int64] | None], float]]] = [
            reader._pool.submit(reader.tokens, rows[start : start + self._size])
            for start in range(0, len(rows), self._size)
        ]
        self._tokens: list[NDArray[np.int64] | None] = []
        self._order: NDArray[np.int64] | None = None
        self._seconds = 0.0
        self._lock = Lock()

    def _sorted(self) -> NDArray[np.int64]:
        """Places of the window's texts from the shortest on, those without words first; of equal ones as they come."""
        with self._lock:
            if self._order is None:
                for each in self._loading:
                    tokens, seconds = each.result()
                    self._tokens += tokens
                    self._seconds += seconds
                lengths = np.array([0 if tokens is None else len(tokens) for tokens in self._tokens])
                self._order = np.argsort(lengths, kind="stable")
            return self._order

    def batch(self, number: int) -> Prepared:
        """The batch at a place in the window."""
        places = self._sorted()[number * self._size : (number + 1) * self._size]
        good = [place for place in places if self._tokens[place] is not None]
        failed = [(self._rows[place], "no words in the text") for place in places if self._tokens[place] is None]
        tokens = [self._tokens[place] for place in good]
        longest = max((len(row) for row in tokens if row is not None), default=0)
        ids = np.full((len(good), longest), self._pad, np.int64)
        mask = np.zeros((len(good), longest), np.int64)
        for number_, row in enumerate(tokens):
            assert row is not None
            ids[number_, : len(row)] = row
            mask[number_, : len(row)] = 1
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0  # counted once
        return Prepared(self._rows.start + np.array(good, np.int64), (ids, mask), failed, seconds)
