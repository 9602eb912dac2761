"""Images or texts to vectors on disk: read and decode, encode, write, all three at once. Imports no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import tcl
from tcl.data.captions import clean_caption
from tcl.errors import DataError, TclError
from tcl.inputs import Inputs
from tcl.processor import Processor
from tcl.vectors import VectorWriter, check_output

FORMAT_VERSION = 1
LOOK_AHEAD_BATCHES = 2  # decoded ahead of the encoder; bounds memory


class Encoder(Protocol):
    """What turns pixels and tokens into vectors; torch and ONNX Runtime have one each.

    Attributes:
        embed_dim: width E of a vector.
        processor: the preprocessing that belongs to the model.
        model_hash: identifies the model; equal for its every backend.
        backend: e.g. `torch-cpu`, `onnx-cpu`.
        precision: e.g. `fp32`.
    """

    embed_dim: int
    processor: Processor
    model_hash: str
    backend: str
    precision: str

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        ...

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        ...


@dataclass
class EmbedReport:
    """What `embed` did.

    Attributes:
        count: vectors written.
        failed: inputs without a vector.
        seconds: of wall time.
        rates: inputs per second that each stage could do by itself.
        bottleneck: the slowest of them.
    """

    count: int
    failed: int
    seconds: float
    rates: dict[str, float]
    bottleneck: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


class _Item(NamedTuple):
    """One prepared input: its row, and pixels or token ids; or why there are none."""

    row: int
    value: NDArray[Any] | str | None
    reason: str = ""


@dataclass
class _Clock:
    """Inputs so far, and the busy seconds of each stage."""

    rows: int = 0
    decode: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def rates(self, workers: int) -> dict[str, float]:
        busy = {"read + decode": self.decode / workers, "encode": self.encode, "write": self.write}
        return {stage: round(self.rows / max(seconds, 1e-9), 1) for stage, seconds in busy.items()}


def embed(
    inputs: Inputs,
    encoder: Encoder,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int = 4,
    on_error: Literal["skip", "fail"] = "skip",
    dtype: Literal["float32", "float16"] = "float32",
    restart: bool = False,
    progress: Callable[[int], object] = lambda n: None,
) -> EmbedReport:
    """Write the vectors of `inputs` and the files that belong to them, see `tcl.vectors`; memory stays flat.

    Rows keep the order of the inputs, and which inputs share a batch depends on nothing but that order, so the result
    is the same for any number of workers.

    Args:
        inputs: from `list_inputs`.
        encoder: the model.
        out: `.npy` or `.parquet`.
        batch_size: inputs per call of the encoder.
        workers: threads that read and decode.
        on_error: `skip` lists inputs that cannot be read in `.errors.jsonl`; `fail` stops at the first.
        dtype: of the vectors on disk.
        restart: replace what is there.
        progress: called with the number of inputs done since the last call.

    Raises:
        UsageError: `out` exists or cannot be written.
        DataError: an input cannot be read and `on_error` is `fail`, or none can.
    """
    check_output(out, restart)
    started = time.monotonic()
    clock = _Clock()
    writer = VectorWriter(out, encoder.embed_dim, dtype, "text" if inputs.kind == "text" else "path")
    try:
        _run(inputs, encoder, writer, clock, batch_size, workers, on_error, progress)
        meta = _meta(inputs, encoder, writer, dtype)
        writer.finish(meta)
    except BaseException:
        writer.abandon()
        raise
    rates = clock.rates(workers)
    return EmbedReport(
        count=writer.count,
        failed=writer.failed,
        seconds=round(time.monotonic() - started, 3),
        rates=rates,
        bottleneck=min(rates, key=lambda stage: rates[stage]),
    )


def _run(
    inputs: Inputs,
    encoder: Encoder,
    writer: VectorWriter,
    clock: _Clock,
    batch_size: int,
    workers: int,
    on_error: str,
    progress: Callable[[int], object],
) -> None:
    first_failure: _Item | None = None
    batch: list[_Item] = []
    written: Future[None] | None = None

    def write(rows: list[int], vectors: NDArray[np.float32]) -> None:
        begun = time.perf_counter()
        writer.append([inputs.ids[row] for row in rows], [inputs.values[row] for row in rows], vectors)
        clock.write += time.perf_counter() - begun

    with ThreadPoolExecutor(workers, "decode") as decoders, ThreadPoolExecutor(1, "write") as writing:

        def flush() -> None:
            nonlocal written
            vectors = _encode(encoder, inputs.kind, batch, clock)
            if written is not None:
                written.result()  # one batch is being written while the next is encoded, no more
            written = writing.submit(write, [item.row for item in batch], vectors)
            progress(len(batch))
            batch.clear()

        try:
            for item in _prepare(inputs, encoder.processor, decoders, LOOK_AHEAD_BATCHES * batch_size + workers, clock):
                if item.value is not None:
                    batch.append(item)
                    if len(batch) == batch_size:
                        flush()
                    continue
                if on_error == "fail":
                    hint = "repair or remove it, or add --on-error skip to go on without such inputs"
                    raise DataError(f"{inputs.ids[item.row]}: {item.reason}", hint=hint)
                first_failure = first_failure or item
                writer.fail(inputs.ids[item.row], item.reason)
                progress(1)
            if batch:
                flush()
            if written is not None:
                written.result()
        except BaseException:
            decoders.shutdown(wait=False, cancel_futures=True)
            raise
    if not writer.count and first_failure is not None:
        raise DataError(
            f"none of the {len(inputs)} inputs has a vector",
            hint=f"the first one is {inputs.ids[first_failure.row]}: {first_failure.reason}",
        )


def _prepare(
    inputs: Inputs, processor: Processor, pool: ThreadPoolExecutor, look_ahead: int, clock: _Clock
) -> Iterator[_Item]:
    """Inputs in order, decoded by the pool at most `look_ahead` ahead of the consumer."""

    def load(row: int) -> tuple[_Item, float]:
        begun = time.perf_counter()
        try:
            if inputs.kind == "image":
                item = _Item(row, processor.image(inputs.location(row)))
            elif clean_caption(inputs.values[row]):
                item = _Item(row, inputs.values[row])
            else:
                item = _Item(row, None, "no words in the text")
        except TclError as error:
            item = _Item(row, None, getattr(error, "reason", error.message))
        return item, time.perf_counter() - begun

    pending: deque[Future[tuple[_Item, float]]] = deque()
    for row in range(len(inputs)):
        pending.append(pool.submit(load, row))
        if len(pending) >= look_ahead:
            yield _take(pending, clock)
    while pending:
        yield _take(pending, clock)


def _take(pending: deque[Future[tuple[_Item, float]]], clock: _Clock) -> _Item:
    item, seconds = pending.popleft().result()
    clock.decode += seconds
    clock.rows += 1
    return item


def _encode(encoder: Encoder, kind: str, batch: list[_Item], clock: _Clock) -> NDArray[np.float32]:
    begun = time.perf_counter()
    if kind == "image":
        vectors = encoder.encode_image(np.stack([item.value for item in batch]))  # type: ignore[misc]
    else:
        vectors = encoder.encode_text(*encoder.processor.texts([str(item.value) for item in batch]))
    clock.encode += time.perf_counter() - begun
    return vectors


def _meta(inputs: Inputs, encoder: Encoder, writer: VectorWriter, dtype: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": inputs.kind,
        "count": writer.count,
        "failed": writer.failed,
        "dim": encoder.embed_dim,
        "dtype": dtype,
        "normalized": True,
        "model_hash": encoder.model_hash,
        "backend": encoder.backend,
        "precision": encoder.precision,
        "preprocessing": encoder.processor.settings(),
        "root": str(inputs.root.absolute()),
        "tcl_version": tcl.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
