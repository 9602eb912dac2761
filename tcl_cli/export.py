"""`tcl export`: a model as verified ONNX graphs."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcl_cli._console import out as console
from tcl_cli._options import OUTPUT_PANEL, JsonOption, ModelOption

if TYPE_CHECKING:
    from export.bundle import Bundle

EXPORTS = Path("exports")
VERIFY_PANEL = "Verification"
VERIFY_IMAGES = 16  # real images that are compared

EPILOG = """\
[bold]Examples[/]

  tcl export
  tcl export --model runs/flickr --out exports/flickr
  tcl export --model TCL_4M.pth --verify-images photos/
  tcl embed images/ --out vecs.npy --model exports/flickr

The bundle holds image_encoder.onnx, text_encoder.onnx, what feeds them, and bundle.json. Exit code 3: a figure is \
outside its bound; the bundle is kept and marked unverified.
"""


def export(
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A new folder. Default: exports/NAME_OF_THE_MODEL.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="Write ONNX graphs; the default.", rich_help_panel=OUTPUT_PANEL, show_default=False
        ),
    ] = True,
    json: JsonOption = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the written graphs with the model, at several batch sizes and every text length.",
            rich_help_panel=VERIFY_PANEL,
        ),
    ] = True,
    verify_images: Annotated[
        str | None,
        typer.Option(
            "--verify-images",
            metavar="SOURCE",
            help=f"Also compare on real images: up to {VERIFY_IMAGES} of a folder or glob.",
            rich_help_panel=VERIFY_PANEL,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model as ONNX graphs that provably compute the same vectors."""
    from tcl.errors import UsageError, VerificationError
    from tcl.resolve import find_model

    if verify_images is not None and not verify:
        raise UsageError("--verify-images and --no-verify exclude each other", hint="leave one of them out")
    source = find_model(model)
    target = out or _free_name(source.name)
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another --out")
    images = _images(verify_images) if verify_images is not None else []

    from export.bundle import build_bundle
    from tcl.checkpoint import load_model

    console.message(f"Exporting {source.location} to {target}" + (" and verifying it" if verify else ""))
    bundle = build_bundle(load_model(source.location), target, check=verify, images=images)
    _show(bundle, json)
    failed = [check for check in bundle.checks if not check.passed]
    if failed:
        raise VerificationError(
            f"{target}: {failed[0].graph} {failed[0].subject}: {failed[0].detail}",
            hint="the bundle is kept for inspection and marked unverified; do not deploy it",
        )
    console.hint(f"tcl embed images/ --out vecs.npy --model {target}")


def _free_name(name: str) -> Path:
    """`exports/name`, or the first of `exports/name-2`, `exports/name-3`, ... that is not taken."""
    names = (EXPORTS / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())


def _images(source: str) -> list[str]:
    from tcl.data.images import ImageError, decode
    from tcl.inputs import list_inputs

    inputs = list_inputs(source, "image")
    readable = []
    for image in (inputs.location(row) for row in range(min(len(inputs), VERIFY_IMAGES))):
        try:
            decode(image)
            readable.append(image)
        except ImageError as error:
            console.warning(f"not used for verification: {error.message}")
    return readable


def _show(bundle: Bundle, json: bool) -> None:
    if json:
        console.json(
            {
                "out": str(bundle.folder),
                "model_hash": bundle.model_hash,
                "verified": bundle.verified,
                "checks": [check.to_json() for check in bundle.checks],
            }
        )
        return
    for check in bundle.checks:
        console.message(f"  {'ok    ' if check.passed else 'FAILED'} {check.graph:14} {check.subject:7} {check.detail}")
    if not bundle.checks:
        console.warning("not verified, as --no-verify asks; the bundle is marked unverified")
    console.data(str(bundle.folder))
