"""Read and decode, encode, write: three stages that overlap, with results that do not depend on who is faster.

In the first, a pool of threads makes arrays of the inputs of a batch: images are decoded, texts cleaned, tokenised and
sorted by length.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tcl.data.images.decode import ImageError
from tcl.data.inputs.inputs import why_gone
from tcl.data.inputs.listing import Inputs
from tcl.data.processor import Processor
from tcl.data.tokenizer import UnknownWords, clean_caption
from tcl.embedding.plan import BatchPlan, Options, Work
from tcl.encoders.base import reading_processor
from tcl.errors import DataError, TclError


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

    def __init__(self, inputs: Inputs, processor: Processor, plan: BatchPlan, pool: Executor) -> None:
        self.inputs, self.processor, self.plan, self._pool = inputs, processor, plan, pool
        self.unknown, self._lock = UnknownWords(), Lock()

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
        with self._lock:
            for text, own in zip(texts, found, strict=True):
                if own is not None:
                    self.unknown.add(text, own, self.processor.tokenizer.unk_id)
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


LOOK_AHEAD_BATCHES = 2  # prepared beside those that are encoded; bounds memory

_OUT_OF_MEMORY = (
    "out of memory",
    "alloc_failed",
    "failed to allocate memory",
    "can't allocate memory",
    "bad allocation",
)


class Sink(Protocol):
    """Where finished batches go."""

    def write(
        self,
        batch: int,
        rows: NDArray[np.int64],
        vectors: NDArray[np.float32],
        tokens: NDArray[np.float16] | None,
        failed: list[tuple[int, str]],
    ) -> None:
        """Keep a batch."""
        ...


@dataclass
class Clock:
    """Inputs so far, the busy seconds of each stage, added up over its threads, and what texts held."""

    rows: int = 0
    decode: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    unknown: UnknownWords = field(default_factory=UnknownWords)

    def __add__(self, other: Clock) -> Clock:
        return Clock(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class Link(NamedTuple):
    """How whoever works talks to whoever waits.

    Attributes:
        progress: called with the number of inputs done since the last call.
        say: called with what the user may want to know.
    """

    progress: Callable[[int], object]
    say: Callable[[str], object]


class _Encoded(NamedTuple):
    """A batch that is on its way to the disk."""

    size: int
    decode: float
    encode: float
    written: Future[float]


class Pipeline:
    """Runs batches of a plan through an encoder, in this process.

    Args:
        inputs: what is embedded.
        encoder: the model.
        plan: which inputs share a batch.
        options: how; `keep_tokens` needs a `TokenEncoder`.
        sink: keeps the results; called by one thread.
        say: told, once, when batches had to be halved.
    """

    def __init__(
        self, inputs: Inputs, encoder: Any, plan: BatchPlan, options: Options, sink: Sink, say: Callable[[str], object]
    ) -> None:
        self.inputs, self.encoder, self.plan, self.options, self.sink = inputs, encoder, plan, options, sink
        self.lanes: int = encoder.lanes
        self.clock = Clock()
        self._say = say
        self._said = False
        self._lock = threading.Lock()
        self._lane = threading.local()

    def run(self, work: Iterable[Work], progress: Callable[[int], object] = lambda n: None) -> None:
        """Do the work; when it ends, by an exception too, every batch that was encoded is written.

        Args:
            work: asked for a little ahead of the encoder.
            progress: called with the number of inputs done since the last call, by this thread.

        Raises:
            DataError: an input cannot be read, and that is to stop the job.
            TclError: the results cannot be written, or the source has gone.
        """
        pending: deque[Future[_Encoded]] = deque()
        limit = self.lanes + LOOK_AHEAD_BATCHES
        decoders = ThreadPoolExecutor(self.options.workers, "decode")
        lanes = ThreadPoolExecutor(self.lanes, "encode")
        self._writer = ThreadPoolExecutor(1, "write")
        try:
            reader = Reader(self.inputs, reading_processor(self.encoder), self.plan, decoders)
            for item in work:
                for batch, prepare in reader.prepare(item):
                    pending.append(lanes.submit(self._encode, batch, prepare))
                    if len(pending) >= limit:
                        self._take(pending, progress)
            while pending:
                self._take(pending, progress)
            self.clock.unknown = reader.unknown
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            lanes.shutdown(cancel_futures=True)
            self._writer.shutdown()
            decoders.shutdown()

    def _take(self, pending: deque[Future[_Encoded]], progress: Callable[[int], object]) -> None:
        """Wait for the oldest batch: errors surface in the order of the batches."""
        done = pending.popleft().result()
        self.clock.write += done.written.result()
        self.clock.rows += done.size
        self.clock.decode += done.decode
        self.clock.encode += done.encode
        progress(done.size)

    def _encode(self, batch: int, prepare: Callable[[], Prepared]) -> _Encoded:
        """In a lane: wait for a batch's inputs, encode them, hand them on."""
        prepared = prepare()
        failed, rows = prepared.failed, prepared.rows
        self._may_fail(failed)
        for row, _ in failed:
            check_source(self.inputs, row)
        begun = time.perf_counter()
        vectors = np.empty((0, self.encoder.embed_dim), np.float32)
        tokens: NDArray[np.float16] | None = None
        if len(rows):
            vectors, tokens = self._call(prepared.arrays)
        elif self.options.keep_tokens:
            tokens = np.empty(0, np.float16)
        seconds = time.perf_counter() - begun
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            failed = failed + [(int(row), "its vector is not finite") for row in rows[~finite]]
            self._may_fail(failed)
            rows, vectors, tokens = rows[finite], vectors[finite], None if tokens is None else tokens[finite]
        before: Future[float] | None = getattr(self._lane, "written", None)
        if before is not None:
            before.result()  # so that a lane never has more than one batch computed and not yet on disk
        written = self._writer.submit(self._write, batch, rows, vectors, tokens, failed)
        self._lane.written = written
        return _Encoded(self.plan.size_of(batch), prepared.seconds, seconds, written)

    def _may_fail(self, failed: list[tuple[int, str]]) -> None:
        if failed and self.options.on_error == "fail":
            row, reason = min(failed)
            hint = "repair or remove it, or add --on-error skip to go on without such inputs"
            raise DataError(f"{self.inputs.ids[row]}: {reason}", hint=hint)

    def _write(self, *parts: Any) -> float:
        begun = time.perf_counter()
        self.sink.write(*parts)
        return time.perf_counter() - begun

    def _call(self, arrays: tuple[NDArray[Any], ...]) -> tuple[NDArray[np.float32], NDArray[np.float16] | None]:
        """Encode a batch, in halves where memory does not suffice for the whole."""
        try:
            return self._call_once(arrays)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size = len(arrays[0])  # outside the handler, which keeps alive what the failed call has allocated
        if size == 1:
            raise TclError(
                "out of memory with a single input",
                hint="use a device with more memory, or stop what else uses it; the same command goes on",
            )
        with self._lock:
            if not self._said:
                self._said = True
                self._say(
                    f"out of memory with {size} inputs at once: such batches are encoded in halves; "
                    "a smaller --batch-size would be faster"
                )
        half = size // 2
        first, second = (
            self._call(tuple(array[part] for array in arrays)) for part in (slice(half), slice(half, size))
        )
        tokens = None if first[1] is None or second[1] is None else np.concatenate([first[1], second[1]])
        return np.concatenate([first[0], second[0]]), tokens

    def _call_once(self, arrays: tuple[NDArray[Any], ...]) -> tuple[NDArray[np.float32], NDArray[np.float16] | None]:
        if self.options.keep_tokens:
            vectors, tokens = self.encoder.encode_image_tokens(*arrays)
            return vectors, tokens.astype(np.float16)
        encode = self.encoder.encode_text if self.inputs.kind == "text" else self.encoder.encode_image
        return encode(*arrays), None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an encoder ran out of memory: numpy, torch on any device, or ONNX Runtime."""
    said = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in said for text in _OUT_OF_MEMORY)
    )


def check_source(inputs: Inputs, row: int) -> None:
    """Is what an input that cannot be read is in still there? Else a disk that goes away would fail all to come.

    Raises:
        DataError: it has gone since the inputs were listed, or has nothing in it any more.
    """
    place = inputs.place(row)
    if place and (reason := why_gone(place)) and place not in inputs.absent:
        raise DataError(f"{place}: {reason}", hint="what was done stays; when it is back, the same command goes on")
