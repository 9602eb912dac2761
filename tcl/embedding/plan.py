"""What an embedding job computes, and which inputs share a batch: a function of the inputs and the batch size alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tcl.encoders.base import reading_processor, unverified
from tcl.errors import DataError
from tcl.vectors.dtypes import Dtype
from tcl.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from tcl.data.inputs.listing import Inputs
    from tcl.encoders.base import Encoder

TEXT_WINDOW = 32  # batches of texts that are sorted by length together


@dataclass(frozen=True)
class Options:
    """How to embed.

    Attributes:
        batch_size: inputs per call of the encoder.
        workers: threads that read and decode, per process.
        on_error: `skip` lists inputs that cannot be read in `.errors.jsonl`; `fail` stops at the first.
        dtype: of the vectors on disk.
        keep_tokens: write the image encoder's final states too.
    """

    batch_size: int = 64
    workers: int = 4
    on_error: Literal["skip", "fail"] = "skip"
    dtype: Dtype = "float32"
    keep_tokens: bool = False


@dataclass(frozen=True)
class EncoderFacts:
    """What a job has to know of its encoder; the same in every process.

    Attributes:
        embed_dim: width E of a vector.
        model_hash: identifies the model.
        backend: e.g. `torch-cpu`.
        precision: e.g. `fp32`.
        preprocessing: settings of the processor that reads the inputs, and how it comes by pixels.
        lanes: how many threads call it at once.
        token_shape: (T, W) where tokens are kept.
        unverified: the bundle or engine whose numbers were not verified, if any.
    """

    embed_dim: int
    model_hash: str
    backend: str
    precision: str
    preprocessing: dict[str, Any]
    lanes: int
    token_shape: tuple[int, int] | None = None
    unverified: str | None = None

    @classmethod
    def of(cls, encoder: Encoder, token_shape: tuple[int, int] | None = None) -> EncoderFacts:
        """The facts of an encoder."""
        processor = reading_processor(encoder)
        return cls(
            encoder.embed_dim,
            encoder.model_hash,
            encoder.backend,
            encoder.precision,
            processor.settings() | processor.decoding(),
            encoder.lanes,
            token_shape,
            unverified(encoder),
        )


class Work(NamedTuple):
    """A part of a job that one process does: batches of one window."""

    window: int
    batches: list[int]


@dataclass(frozen=True)
class BatchPlan:
    """Batches and the windows they belong to.

    Batch k holds as many rows as there are rows k * batch_size and on in its window: of images these rows themselves,
    of texts those at these places when the window is sorted by length.

    Attributes:
        rows: inputs N.
        batch_size: rows of a batch.
        window: batches in a window; 1 for images.
    """

    rows: int
    batch_size: int
    window: int

    @classmethod
    def of(cls, inputs: Inputs, batch_size: int) -> BatchPlan:
        """The plan for these inputs."""
        return cls(len(inputs), batch_size, TEXT_WINDOW if inputs.kind == "text" else 1)

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-self.rows // self.batch_size)

    @property
    def windows(self) -> int:
        """How many there are."""
        return -(-self.batches // self.window)

    def batches_of(self, window: int) -> range:
        """Numbers of the batches in a window."""
        return range(window * self.window, min((window + 1) * self.window, self.batches))

    def rows_of(self, window: int) -> range:
        """The rows in a window."""
        span = self.window * self.batch_size
        return range(window * span, min((window + 1) * span, self.rows))

    def size_of(self, batch: int) -> int:
        """Rows of a batch."""
        return min(self.batch_size, self.rows - batch * self.batch_size)


def fingerprint(inputs: Inputs, facts: EncoderFacts, options: Options) -> dict[str, Any]:
    """What has to be the same for a job to go on, as it reads back from JSON."""
    wanted = {
        "inputs": [len(inputs), inputs.stamp],
        "kind": inputs.kind,
        "model": facts.model_hash,
        "backend": facts.backend,
        "precision": facts.precision,
        "preprocessing": facts.preprocessing,
        "token_shape": facts.token_shape,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "tcl_version": __version__,
    }
    values: dict[str, Any] = json.loads(json.dumps(wanted))
    return values


def fingerprint_of(meta: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of the job that made finished vectors."""
    same = ("kind", "backend", "precision", "preprocessing", "token_shape", "batch_size", "dtype", "tcl_version")
    return {
        "inputs": [meta.get("count", 0) + meta.get("failed", 0), meta.get("inputs_stamp")],
        "model": meta.get("model_hash"),
        **{name: meta.get(name) for name in same},
    }


def refuse_failed(out: Path, meta: dict[str, Any], options: Options) -> None:
    """Are vectors that an earlier call has finished what `on_error` asks for?

    Raises:
        DataError: an input has none, and that is to stop the job.
    """
    if meta.get("failed") and options.on_error == "fail":
        raise DataError(
            f"{out}: {meta['failed']} inputs have no vector",
            hint="add --on-error skip to go on without them; or repair or remove them, and add --restart",
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, for people to read."""
    found = []
    for name in now:
        if before.get(name) == now[name]:
            continue
        if name == "inputs":
            known = before.get(name)
            counts = [str(known[0])[:40] if isinstance(known, list) and known else "?", str(now[name][0])]
            found.append("inputs" if counts[0] == counts[1] else f"inputs ({counts[0]} then, {counts[1]} now)")
        elif name == "model":
            found.append(f"model ({str(before.get(name))[:12]} then, {now[name][:12]} now)")
        elif name in ("preprocessing", "token_shape"):
            found.append("preprocessing" if name == "preprocessing" else "--keep-tokens")
        else:
            found.append(f"{name.replace('_', ' ')} ({str(before.get(name))[:40]} then, {now[name]} now)")
    return found
