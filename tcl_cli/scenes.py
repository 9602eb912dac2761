"""`tcl scenes`: the built-in data as files, to try every other command on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tcl_cli._console import counted
from tcl_cli._console import out as console
from tcl_cli._options import OUTPUT_PANEL, App, argument, option

CAPTIONS_FILE = "captions.jsonl"
STATEMENTS_FILE = "statements.jsonl"
REGIONS_FILE = "regions.jsonl"

EPILOG = """\
[bold]Examples[/]

  tcl scenes --out images
  tcl scenes scenes:val:64 --out images
  tcl embed images/ --out vecs.npy
  tcl eval retrieval --data images/captions.jsonl
  tcl scenes scenes:train:8000 --labels --out train
  tcl finetune entailment --data train/statements.jsonl
"""


app = App()


@app.command(epilog=EPILOG)
def scenes(
    spec: Annotated[
        str, argument(metavar="[SCENES]", help="Which: scenes:SPLIT, scenes:SPLIT:COUNT or scenes:SPLIT:COUNT:SEED.")
    ] = "scenes:val:256",
    out: Annotated[Path, option("--out", "-o", help="A new folder.", panel=OUTPUT_PANEL)] = Path("images"),
    labels: Annotated[
        bool,
        option(
            "--labels",
            help=f"Also write {STATEMENTS_FILE}, sentences that are true or false, for `entailment`, and "
            f"{REGIONS_FILE}, a box for each shape, for `grounding`.",
            panel=OUTPUT_PANEL,
        ),
    ] = False,
) -> None:
    """Render built-in scenes to PNG files with their captions."""
    number = write_scenes(spec, out, labels=labels)
    console.message(f"{counted(number, 'images')}, with captions in {CAPTIONS_FILE}")
    if labels:
        console.message(f"Labels in {STATEMENTS_FILE} and {REGIONS_FILE}")
    console.data(str(out))


def write_scenes(spec: str, folder: Path, *, labels: bool = False) -> int:
    """Render the scenes of `spec` into a new folder, with `captions.jsonl`, and files of labels where they are wanted.

    Returns:
        How many there are.

    Raises:
        UsageError: the specification is malformed, or the folder exists or cannot be written.
    """
    import json

    from tcl.data.scenes.scenes import render, scene_rows
    from tcl.errors import UsageError
    from tcl.files.atomic import atomic_folder

    rows = list(scene_rows(spec))
    if folder.exists():
        raise UsageError(f"{folder}: exists", hint="choose another --out")
    digits = len(str(len(rows) - 1))
    files: dict[str, list[str]] = {CAPTIONS_FILE: []}
    try:
        with atomic_folder(folder) as temporary, console.progress("Rendering", len(rows)) as advance:
            for number, (reference, texts) in enumerate(rows):
                name = f"{number:0{digits}}.png"
                render(reference).save(temporary / name)
                found = {CAPTIONS_FILE: [{"caption": texts}]} | (label_rows(reference) if labels else {})
                for file, values in found.items():
                    files.setdefault(file, []).extend(json.dumps({"image": name} | value) + "\n" for value in values)
                advance()
            for file, lines in files.items():
                (temporary / file).write_text("".join(lines), encoding="utf-8")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}", hint="choose another --out") from error
    return len(rows)


def label_rows(reference: str) -> dict[str, list[dict[str, Any]]]:
    """What the files of labels say about a scene, by file."""
    from tcl.data.scenes.labels import scene_regions, scene_statements

    return {
        STATEMENTS_FILE: [statement._asdict() for statement in scene_statements(reference)],
        REGIONS_FILE: [{"text": text, "box": box} for text, box in scene_regions(reference)],
    }
