"""`tcl scenes`: the built-in data as files, to try every other command on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tcl_cli._console import out as console
from tcl_cli._options import OUTPUT_PANEL

CAPTIONS_FILE = "captions.jsonl"

EPILOG = """\
[bold]Examples[/]

  tcl scenes --out images
  tcl scenes scenes:val:64 --out images
  tcl embed images/ --out vecs.npy
  tcl eval retrieval --data images/captions.jsonl
"""


def scenes(
    spec: Annotated[
        str,
        typer.Argument(metavar="[SCENES]", help="Which: scenes:SPLIT, scenes:SPLIT:COUNT or scenes:SPLIT:COUNT:SEED."),
    ] = "scenes:val:256",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A new folder.", rich_help_panel=OUTPUT_PANEL, show_default=False)
    ] = Path("images"),
) -> None:
    """Render built-in scenes to PNG files with their captions."""
    number = write_scenes(spec, out)
    console.message(f"{number} images, with captions in {CAPTIONS_FILE}")
    console.data(str(out))


def write_scenes(spec: str, folder: Path) -> int:
    """Render the scenes of `spec` into a new folder, with `captions.jsonl`.

    Returns:
        How many there are.

    Raises:
        UsageError: the specification is malformed, or the folder exists or cannot be written.
    """
    import json

    from tcl.atomic import atomic_folder
    from tcl.data.scenes import render, scene_rows
    from tcl.errors import UsageError

    rows = list(scene_rows(spec))
    if folder.exists():
        raise UsageError(f"{folder}: exists", hint="choose another --out")
    digits = len(str(len(rows) - 1))
    lines = []
    try:
        with atomic_folder(folder) as temporary, console.progress("Rendering", len(rows)) as advance:
            for number, (reference, texts) in enumerate(rows):
                name = f"{number:0{digits}}.png"
                render(reference).save(temporary / name)
                lines.append(json.dumps({"image": name, "caption": texts}) + "\n")
                advance()
            (temporary / CAPTIONS_FILE).write_text("".join(lines), encoding="utf-8")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}", hint="choose another --out") from error
    return len(rows)
