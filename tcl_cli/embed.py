"""`tcl embed`: images or texts to vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tcl_cli._console import Advance, counted
from tcl_cli._console import out as console
from tcl_cli._options import (
    INPUT_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    SPEED_PANEL,
    AllowUnverifiedOption,
    App,
    BackendOption,
    Device,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    ModelOption,
    TextColumnOption,
    argument,
    option,
)

if TYPE_CHECKING:
    from tcl.data.inputs.listing import Inputs
    from tcl.embedding.parts import Output
    from tcl.embedding.plan import EncoderFacts
    from tcl.embedding.run import EmbedReport
    from tcl.encoders.base import Encoder


@contextmanager
def show_progress(inputs: Inputs, facts: EncoderFacts, done: int, state: Callable[[], str]) -> Iterator[Advance]:
    """Say what is about to be done, show its progress, and on Ctrl-C how to go on."""
    if facts.unverified:
        say_unverified(facts.unverified)
    console.message(f"{counted(len(inputs), f'{inputs.kind}s')} with model {facts.model_hash[:12]} on {facts.backend}")
    if done:
        console.message(f"Continuing: {state()}")
    try:
        with console.progress("Embedding", len(inputs), initial=done) as advance:
            yield advance
    except KeyboardInterrupt:
        console.message(f"{state()}; the same command goes on")
        raise


def print_report(report: EmbedReport, output: Output, table: bool) -> None:
    """Say what was done and what was slow."""
    from tcl.vectors.files import sidecar

    if report.bottleneck:
        rates = ", ".join(f"{stage} {rate:.0f}/s" for stage, rate in report.rates.items())
        now = f", {counted(report.resumed, 'inputs')} done before" if report.resumed else ""
        console.message(
            f"{counted(report.count, 'vectors')}{now}, in {report.seconds:.1f} s with opening the model; "
            f"each stage by itself: {rates}; the bottleneck is {report.bottleneck}"
        )
    if report.recall_at_10 is not None:
        console.message(
            f"recall@10 of these vectors against float32: {report.recall_at_10:.4f}, "
            f"{100 * (1 - report.recall_at_10):.2f} % lost"
        )
    if report.failed:
        errors = output.path / "part-*.errors.jsonl" if output.parts else sidecar(output.path, "errors.jsonl")
        console.warning(f"{counted(report.failed, 'inputs')} could not be read; see {errors}")
    if table:
        for line in profile_lines(report):
            console.message(line)


def profile_lines(report: EmbedReport) -> list[str]:
    """The stages as a table for people; the slowest one is marked."""
    lines = [f"{'stage':<16}{'threads':>8}{'busy s':>10}{'inputs/s':>12}"]
    for stage in report.stages:
        mark = "  <- bottleneck" if stage["stage"] == report.bottleneck else ""
        lines.append(f"{stage['stage']:<16}{stage['threads']:>8}{stage['seconds']:>10.2f}{stage['rate']:>12.1f}{mark}")
    return lines


def say_unverified(folder: object) -> None:
    """Say that numbers of a bundle were not verified."""
    console.warning(f"{folder} is marked unverified: its vectors may differ from the model's")


EPILOG = """\
[bold]Examples[/]

  tcl embed images/ --out vecs.npy
  tcl embed "photos/2024-*/*.jpg" --out vecs.parquet --dtype float16
  tcl embed captions.jsonl --kind text --out texts.npy
  tcl embed images/ --out vecs.npy --model exports/demo --workers 8
  tcl embed "shards/{00000..00099}.tar" --out vecs/ --shard-rows 100000 --devices all

Row i of vecs.npy is line i of vecs.ids.jsonl. Inputs that cannot be read are in vecs.errors.jsonl, model and \
settings in vecs.meta.json. A job that was killed goes on when the same command is given again.
"""


Kind = Literal["auto", "image", "text"]


Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"]


OnError = Literal["skip", "fail"]


Dtype = Literal["float32", "float16", "int8", "binary"]


Format = Literal["npy", "parquet"]


Engine = Literal["local", "ray"]


app = App()


@app.command(epilog=EPILOG)
def embed(
    source: Annotated[
        str,
        argument(
            metavar="SOURCE",
            help="A folder of images, a quoted glob, an image; a .txt of sentences or of image paths, or - for stdin; "
            " a .json, .jsonl, .csv, .tsv or .parquet with an image or text column; tar shards; or scenes:",
        ),
    ],
    out: Annotated[
        str,
        option(
            "--out",
            "-o",
            help="Where to, ending in .npy or .parquet; or a folder of parts, ending in a slash.",
            panel=OUTPUT_PANEL,
        ),
    ],
    model: ModelOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    allow_unverified: AllowUnverifiedOption = False,
    precision: Annotated[
        Precision,
        option(
            "--precision",
            help="Number format that the model computes in. auto: fp16 on a GPU, fp32 on a CPU where the model has it.",
            panel=MODEL_PANEL,
        ),
    ] = "auto",
    kind: Annotated[
        Kind, option("--kind", help="auto: images where the source has any, else texts.", panel=INPUT_PANEL)
    ] = "auto",
    images: Annotated[
        str | None,
        option(
            "--images",
            help="Folder or URL that relative image paths in a table or list start from. Default: its own folder.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        option(
            "--exclude",
            metavar="PATTERN",
            help="Files and sub-folders of a folder that are left out, as thumbs or '*_small.jpg'; may be repeated.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    id_column: Annotated[
        str | None, option("--id-column", help="Column of ids. Default: id.", panel=INPUT_PANEL)
    ] = None,
    on_error: Annotated[
        OnError, option("--on-error", help="Skip and list inputs that cannot be read, or stop.", panel=INPUT_PANEL)
    ] = "skip",
    dtype: Annotated[
        Dtype, option("--dtype", help="Of the vectors on disk; what it costs in recall is printed.", panel=OUTPUT_PANEL)
    ] = "float32",
    keep_tokens: Annotated[
        bool,
        option(
            "--keep-tokens",
            help="Write the image encoder's last states too, for re-ranking without the images.",
            panel=OUTPUT_PANEL,
        ),
    ] = False,
    shard_rows: Annotated[
        int | None,
        option("--shard-rows", min=1, help="Inputs per part of a folder. Default: 100,000.", panel=OUTPUT_PANEL),
    ] = None,
    format_: Annotated[
        Format | None, option("--format", help="Of the parts. Default: npy.", panel=OUTPUT_PANEL)
    ] = None,
    restart: Annotated[
        bool, option("--restart", help="Begin anew, and replace the vectors that are there.", panel=OUTPUT_PANEL)
    ] = False,
    resume: Annotated[
        bool,
        option(
            "--resume",
            help="Also succeed when the vectors are complete; a job that was begun goes on without it too.",
            panel=OUTPUT_PANEL,
        ),
    ] = False,
    json: JsonOption = False,
    batch_size: Annotated[
        int, option("--batch-size", "-b", min=1, help="Inputs per pass through the model.", panel=SPEED_PANEL)
    ] = 64,
    workers: Annotated[
        int, option("--workers", "-w", min=1, help="Threads that read and decode, per device.", panel=SPEED_PANEL)
    ] = 4,
    devices: Annotated[
        str | None,
        option(
            "--devices",
            help="Several devices, a process for each: all (GPUs), or 0,1 or cuda:0,cuda:1.",
            panel=SPEED_PANEL,
        ),
    ] = None,
    engine: Annotated[
        Engine,
        option(
            "--engine",
            help="ray: the parts of a folder on a Ray cluster, the one of $RAY_ADDRESS or of this machine.",
            panel=SPEED_PANEL,
        ),
    ] = "local",
    profile: Annotated[bool, option("--profile", help="Print a table of the stages.", panel=SPEED_PANEL)] = False,
) -> None:
    """Turn images or texts into vectors, with ids that match row by row."""
    from tcl.data.inputs.listing import list_inputs
    from tcl.embedding.plan import Options
    from tcl.embedding.run import run_embedding
    from tcl.errors import UsageError

    if restart and resume:
        raise UsageError("--restart begins anew, --resume goes on", hint="choose one")
    output = _output(out, shard_rows, format_, engine)
    output.check(restart, resume)
    used = _devices(devices, device, engine)
    with console.progress("Listing") as listed:
        inputs = list_inputs(
            source,
            kind,
            image_column=image_column,
            text_column=text_column,
            id_column=id_column,
            images=images,
            progress=listed,
            exclude=exclude or (),
        )
    for warning in inputs.warnings:
        console.warning(warning)
    options = Options(batch_size, workers, on_error, dtype, keep_tokens)
    report = run_embedding(
        inputs,
        output,
        options,
        partial(open_on, model or os.environ.get("TCL_MODEL"), backend, precision, allow_unverified),
        used,
        engine=engine,
        restart=restart,
        resume=resume,
        begin=partial(show_progress, inputs),
        say=console.message,
        warn=console.warning,
    )
    print_report(report, output, profile and not json)
    if json:
        profiled = {"profile": report.stages} if profile else {}
        console.json({"out": str(output.path)} | report.to_json() | profiled)
    else:
        console.data(str(output.path))


def open_on(model: str | None, backend: str, precision: str, allow_unverified: bool, device: str) -> Encoder:
    """The encoder of a device; a process that has one of several calls this."""
    from tcl.encoders.open import open_encoder
    from tcl.machine.processes import available_cores

    # Two lanes even on one core: each call then computes in one thread on every machine, and so the same.
    lanes = max(2, available_cores())
    how: dict[str, Any] = {"backend": backend, "device": device, "precision": precision}
    return open_encoder(model, lanes=lanes, say=console.message, allow_unverified=allow_unverified, **how)


def _output(out: str, shard_rows: int | None, format_: Format | None, engine: Engine) -> Output:
    from tcl.embedding.parts import SHARD_ROWS, Output, is_parts_output
    from tcl.errors import UsageError

    if is_parts_output(out):
        suffix = f".{format_ or 'npy'}"
        return Output(Path(out), True, shard_rows or SHARD_ROWS, suffix)  # type: ignore[arg-type]
    for name, given in (("--shard-rows", shard_rows), ("--format", format_), ("--engine ray", engine == "ray")):
        if given:
            raise UsageError(f"{name} is for a folder of parts", hint=f"for example --out {Path(out).stem}/")
    return Output(Path(out))


def _devices(devices: str | None, device: Device, engine: Engine) -> list[str]:
    from tcl.errors import UsageError
    from tcl.machine.devices import parse_devices

    if devices is None:
        return [device]
    if device != "auto":
        raise UsageError("--device and --devices say the same", hint="leave one out")
    if engine == "ray" and devices in ("auto", "all"):
        return ["auto"]
    return parse_devices(devices, here=engine == "local")


def warn_unverified(encoder: Encoder) -> None:
    """Say so when vectors come from a bundle whose numbers were not verified, or were and failed."""
    from tcl.encoders.base import unverified

    if place := unverified(encoder):
        say_unverified(place)
