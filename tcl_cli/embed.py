"""`tcl embed`: images or texts to vectors."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcl_cli._console import out as console
from tcl_cli._options import (
    INPUT_PANEL,
    OUTPUT_PANEL,
    SPEED_PANEL,
    Backend,
    BackendOption,
    Device,
    DeviceOption,
    JsonOption,
    ModelOption,
)

if TYPE_CHECKING:
    from tcl.embed import Encoder

EPILOG = """\
[bold]Examples[/]

  tcl embed images/ --out vecs.npy
  tcl embed "photos/2024-*/*.jpg" --out vecs.parquet --dtype float16
  tcl embed captions.jsonl --kind text --out texts.npy
  tcl embed images/ --out vecs.npy --model exports/demo --workers 8

Row i of vecs.npy is line i of vecs.ids.jsonl. Inputs that cannot be read are in vecs.errors.jsonl, model and \
settings in vecs.meta.json.
"""


class Kind(StrEnum):
    """What a source holds."""

    auto = "auto"
    image = "image"
    text = "text"


class OnError(StrEnum):
    """What to do about an input that cannot be read."""

    skip = "skip"
    fail = "fail"


class Dtype(StrEnum):
    """Of vectors on disk."""

    float32 = "float32"
    float16 = "float16"


def embed(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images, a quoted glob, an image; a .txt of sentences or of image paths; a .json, .jsonl, "
            ".csv or .tsv with an image or text column; or scenes:",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Where to, ending in .npy or .parquet.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ],
    model: ModelOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = Device.auto,
    kind: Annotated[
        Kind,
        typer.Option("--kind", help="auto: images where the source has any, else texts.", rich_help_panel=INPUT_PANEL),
    ] = Kind.auto,
    on_error: Annotated[
        OnError,
        typer.Option(
            "--on-error", help="Skip and list inputs that cannot be read, or stop.", rich_help_panel=INPUT_PANEL
        ),
    ] = OnError.skip,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of the vectors on disk.", rich_help_panel=OUTPUT_PANEL)
    ] = Dtype.float32,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace the vectors that are there.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    json: JsonOption = False,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", "-b", min=1, help="Inputs per pass through the model.", rich_help_panel=SPEED_PANEL
        ),
    ] = 64,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="Threads that read and decode.", rich_help_panel=SPEED_PANEL)
    ] = 4,
) -> None:
    """Turn images or texts into vectors, with ids that match row by row."""
    from export.runtime import open_encoder
    from tcl.embed import embed as run
    from tcl.inputs import list_inputs
    from tcl.vectors import check_output, sidecar

    check_output(out, restart)
    inputs = list_inputs(source, kind.value)
    encoder = open_encoder(model, backend.value, device.value)
    warn_unverified(encoder)
    console.message(f"{len(inputs)} {inputs.kind}s with model {encoder.model_hash[:12]} on {encoder.backend}")
    with console.progress("Embedding", len(inputs)) as advance:
        report = run(
            inputs,
            encoder,
            out,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error.value,
            dtype=dtype.value,
            restart=restart,
            progress=advance,
        )
    rates = ", ".join(f"{stage} {rate:.0f}/s" for stage, rate in report.rates.items())
    console.message(
        f"{report.count} vectors in {report.seconds:.1f} s, {report.count / report.seconds:.0f}/s; "
        f"each stage by itself: {rates}; the bottleneck is {report.bottleneck}"
    )
    if report.failed:
        console.warning(f"{report.failed} inputs could not be read; see {sidecar(out, 'errors.jsonl')}")
    if json:
        console.json({"out": str(out), "model_hash": encoder.model_hash, "backend": encoder.backend} | report.to_json())
    else:
        console.data(str(out))


def warn_unverified(encoder: Encoder) -> None:
    """Say so when vectors come from a bundle whose numbers were not verified, or were and failed."""
    bundle = getattr(encoder, "bundle", None)
    if bundle is not None and not bundle.verified:
        console.warning(f"{bundle.folder} is marked unverified: its vectors may differ from the model's")
