"""Images or texts to vectors on disk: read and decode, encode, write, all three at once.

A job can be killed at any moment and as often as one likes: the same call goes on, and the files are in the end the
same, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tcl.data.inputs.listing import Inputs, Kind
from tcl.embedding.parts import Job, Output
from tcl.embedding.pipeline import Clock, Link
from tcl.embedding.plan import EncoderFacts, Options
from tcl.embedding.ray import RayWorkers
from tcl.embedding.workers import MakeEncoder, Workers
from tcl.encoders.base import Encoder, TokenEncoder
from tcl.errors import DataError, UsageError
from tcl.machine.devices import use_device
from tcl.vectors.dtypes import Dtype

Progress = Callable[[int], object]
Say = Callable[[str], object]


@dataclass
class EmbedReport:
    """What `embed` did.

    Attributes:
        model_hash: of the model.
        backend: that it ran on.
        count: vectors written.
        failed: inputs without a vector.
        resumed: inputs that an earlier call had done.
        seconds: of wall time.
        rates: inputs per second that each stage could do by itself.
        bottleneck: the slowest of them; empty where nothing was left to do.
        recall_at_10: of the 10 nearest neighbours, the share that search finds in the stored vectors too; None for
            float32, of which it finds all.
        stages: per stage its threads, busy seconds and rate.
    """

    model_hash: str
    backend: str
    count: int
    failed: int
    resumed: int
    seconds: float
    rates: dict[str, float]
    bottleneck: str
    recall_at_10: float | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, without the stages."""
        return {name: value for name, value in asdict(self).items() if name != "stages"}


def embed(
    inputs: Inputs,
    encoder: Encoder,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int = 4,
    on_error: Literal["skip", "fail"] = "skip",
    dtype: Dtype = "float32",
    keep_tokens: bool = False,
    restart: bool = False,
    progress: Progress = lambda n: None,
    say: Say = lambda text: None,
    warn: Say = lambda text: None,
) -> EmbedReport:
    """Write the vectors of `inputs` and the files that belong to them, see `tcl.vectors.files`; memory stays flat.

    Rows keep the order of the inputs, and which inputs share a batch depends on nothing but that order, so the result
    is the same for any number of workers. A call that was killed is continued by the next one.

    Args:
        inputs: from `list_inputs`.
        encoder: the model.
        out: `.npy` or `.parquet`.
        batch_size: inputs per call of the encoder.
        workers: threads that read and decode.
        on_error: `skip` lists inputs that cannot be read in `.errors.jsonl`; `fail` stops at the first.
        dtype: of the vectors on disk.
        keep_tokens: write the image encoder's last states too; the encoder has to be a `TokenEncoder`.
        restart: begin anew, and replace what is there.
        progress: called with the number of inputs done since the last call; those of an earlier call come first.
        say: called with what the user may want to know.
        warn: called when texts hold words that the vocabulary does not know.

    Raises:
        UsageError: `out` exists or cannot be written, another process is writing it, or the job that was begun there
            had other inputs, another model or other settings.
        DataError: an input cannot be read and `on_error` is `fail`, or none can.
        TclError: the disk is full or gone; what was done stays.
    """

    def begin(facts: EncoderFacts, done: int, state: Callable[[], str]) -> AbstractContextManager[Progress]:
        progress(done)
        return nullcontext(progress)

    options = Options(batch_size, workers, on_error, dtype, keep_tokens)
    return run_embedding(
        inputs, Output(out), options, lambda device: encoder, restart=restart, begin=begin, say=say, warn=warn
    )


Begin = Callable[[EncoderFacts, int, Callable[[], str]], AbstractContextManager[Progress]]


def run_embedding(
    inputs: Inputs,
    output: Output,
    options: Options,
    make_encoder: MakeEncoder,
    devices: list[str] | None = None,
    *,
    engine: Literal["local", "ray"] = "local",
    restart: bool = False,
    resume: bool = False,
    begin: Begin,
    say: Say = lambda text: None,
    warn: Say = lambda text: None,
) -> EmbedReport:
    """`embed` for several devices and for folders of parts.

    Args:
        inputs: from `list_inputs`.
        output: where to.
        options: how.
        make_encoder: builds the encoder of a device; with several devices it has to be picklable.
        devices: from `parse_devices`; more than one are worked on by a process each.
        engine: `ray` does the parts of a folder on a Ray cluster, see `tcl.embedding.ray`.
        restart: begin anew, and replace what is there.
        resume: finished vectors of the same job are no error.
        begin: called when the work begins, with the encoder's facts, the number of inputs that are done already, and
            a function that tells how far the job is; inside what it returns, progress is reported.
        say: called with what the user may want to know.
        warn: called when texts hold words that the vocabulary does not know, of those that this call embeds.

    Raises:
        UsageError, DataError, TclError: as `embed`; also when the process of a device died.
    """
    if not len(inputs):
        raise DataError("there is nothing to embed")
    started = time.monotonic()
    examine = partial(examine_encoder, kind=inputs.kind, keep_tokens=options.keep_tokens)
    devices = devices or ["auto"]
    with ExitStack() as stack:
        workers: Workers | RayWorkers | None = None
        if engine == "ray":
            workers = stack.enter_context(RayWorkers(make_encoder, devices, examine))
            facts, processes = workers.facts, workers.actors
        elif len(devices) > 1 or devices[0].startswith("cuda:"):  # a GPU is chosen before anything has looked for one
            workers = stack.enter_context(Workers(make_encoder, devices, examine))
            facts, processes = workers.facts, len(devices)
        else:
            encoder = make_encoder(use_device(devices[0]))
            facts, processes = examine(encoder), 1
        if resume and (meta := output.finished()):
            output.check_finished(meta, inputs, facts, options)
            say(f"{output.path} is complete")
            return _report(meta, Clock(), facts, options, processes, len(inputs), started)
        job: Job = stack.enter_context(output.open(inputs, facts, options, restart))
        if workers is not None:
            stack.callback(workers.close)  # before the job lets go of its folder
        resumed = job.rows_done
        with begin(facts, resumed, job.state) as progress:
            if workers is None:
                clock = job.task().run(0, encoder, inputs, job.pending(), Link(progress, say))
            else:
                clock = workers.run(job.task(), job.share_inputs(), job.pending(), progress, say)
        if warning := clock.unknown.warning():
            warn(warning)
        return _report(job.finish(), clock, facts, options, processes, resumed, started)


def examine_encoder(encoder: Encoder, kind: Kind, keep_tokens: bool) -> EncoderFacts:
    """What a job has to know of its encoder.

    Raises:
        UsageError: tokens are to be kept, and there are none.
    """
    if not keep_tokens:
        return EncoderFacts.of(encoder)
    if kind == "text":
        raise UsageError("--keep-tokens keeps the tokens of images, and these are texts", hint="leave it out")
    if not isinstance(encoder, TokenEncoder):
        raise UsageError(
            f"--keep-tokens: {encoder.backend} gives no image tokens here",
            hint="name a run, or a bundle that holds the matcher, by --model",
        )
    _, tokens = encoder.encode_image_tokens(np.zeros((1, 3, *encoder.processor.image_size), np.uint8))
    return EncoderFacts.of(encoder, (int(tokens.shape[1]), int(tokens.shape[2])))


def _report(
    meta: dict[str, Any],
    clock: Clock,
    facts: EncoderFacts,
    options: Options,
    processes: int,
    resumed: int,
    started: float,
) -> EmbedReport:
    first = "tokenise" if meta["kind"] == "text" else "read + decode"
    threads = {first: options.workers * processes, "encode": facts.lanes * processes, "write": processes}
    seconds = {first: clock.decode, "encode": clock.encode, "write": clock.write}
    rates = {name: round(clock.rows * threads[name] / max(seconds[name], 1e-9), 1) for name in threads}
    return EmbedReport(
        model_hash=facts.model_hash,
        backend=facts.backend,
        count=meta["count"],
        failed=meta["failed"],
        resumed=resumed,
        seconds=round(time.monotonic() - started, 3),
        rates=rates,
        bottleneck=min(rates, key=lambda name: rates[name]) if clock.rows else "",
        recall_at_10=meta.get("recall_at_10"),
        stages=[
            {"stage": name, "threads": threads[name], "seconds": round(seconds[name], 3), "rate": rates[name]}
            for name in threads
        ],
    )
