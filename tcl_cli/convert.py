"""`tcl convert`: published checkpoints to model folders, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tcl_cli._console import out as console
from tcl_cli._options import INPUT_PANEL, App, JsonOption, argument, option

PUBLISHED_SUFFIX = ".pth"

EPILOG = """\
[bold]Examples[/]

  tcl convert TCL_4M.pth models/tcl-4m
  tcl convert ALBEF.pth models/albef --tokenizer vocab.txt
  tcl convert runs/flickr flickr.pth
  tcl convert runs/flickr/checkpoints/step-00030000 flickr-with-teacher.pth

What is converted to a folder and back is the same, bit for bit.
"""


app = App()


@app.command(epilog=EPILOG)
def convert(
    source: Annotated[
        str, argument(metavar="IN", help="A published .pth, or a run, model folder, checkpoint or hub id.")
    ],
    target: Annotated[
        Path, argument(metavar="OUT", help="A new file NAME.pth in the published format, or a new model folder.")
    ],
    tokenizer: Annotated[
        str | None,
        option(
            "--tokenizer",
            help="The vocabulary of a published .pth: a tokenizer.json, vocab.txt, folder or hub id. "
            "Default: the one beside it, else bert-base-uncased from the hub.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Convert a published checkpoint to a model folder, or a model to the published format."""
    from tcl.errors import UsageError
    from tcl.weights.find import find_model

    found = find_model(source)
    if found.kind == "bundle":
        raise UsageError(f"{source}: an exported bundle holds no weights to convert", hint="give the run it came from")
    to_folder = target.suffix != PUBLISHED_SUFFIX
    if (found.kind == "reference") != to_folder:
        raise UsageError(
            f"{source} is {'a model folder' if to_folder else 'in the published format'} already",
            hint=f"a .pth becomes a folder, and a model a file {target.name or 'NAME'}{PUBLISHED_SUFFIX}",
        )
    if tokenizer is not None and not to_folder:
        raise UsageError("--tokenizer is for a published .pth; a model has its vocabulary", hint="leave it out")

    from tcl.weights.convert import from_reference, to_reference

    if to_folder:
        report = from_reference(found.path, target, tokenizer)
        lines, keys = report.lines(), report.to_dict()
    else:
        state = to_reference(found.fetch(), target, warn=console.warning)
        teacher = any(name.partition(".")[0].endswith("_m") for name in state)
        lines = [
            f"{len(state)} keys" + ("" if teacher else ", without teacher and queues: only checkpoints have these")
        ]
        keys = {"written": list(state), "teacher": teacher}
    if json:
        console.json({"out": str(target), "keys": keys})
        return
    for line in lines:
        console.message(line)
    console.data(str(target))
    console.hint(f"tcl inspect {target}")
