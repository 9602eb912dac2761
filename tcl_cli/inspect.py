"""`tcl inspect`: what a model is, and what became of each key of its file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tcl_cli._console import format_value
from tcl_cli._console import out as console
from tcl_cli._options import OUTPUT_PANEL, App, JsonOption, argument, option

if TYPE_CHECKING:
    from tcl.weights.description import Description

EPILOG = """\
[bold]Examples[/]

  tcl inspect
  tcl inspect runs/flickr
  tcl inspect TCL_4M.pth --keys
  tcl inspect exports/demo --json

Exit code 1: keys are missing, unknown or of another shape, so that the model cannot be used as it is.
"""


app = App()


@app.command(epilog=EPILOG)
def inspect(
    model: Annotated[
        str | None,
        argument(
            metavar="MODEL",
            help="A run, a model folder, a checkpoint, a published .pth, an exported bundle or a hub id. "
            "Default: $TCL_MODEL, else the newest finished run under ./runs.",
        ),
    ] = None,
    keys: Annotated[bool, option("--keys", help="Every key, with its class.", panel=OUTPUT_PANEL)] = False,
    json: JsonOption = False,
) -> None:
    """Say what a model is: sizes, parameters, training, and what became of each key of its file."""
    from tcl.errors import CheckpointError

    description = _describe(model)
    if json:
        console.json(description.to_dict())
    else:
        _show(description, keys)
    if description.problem:
        raise CheckpointError(
            f"{description.location}: {description.problem}", hint="is the file complete, and of this architecture?"
        )


def _describe(model: str | None) -> Description:
    """A bundle, packed or not, without torch, which may not be there; anything else with it."""
    from tcl.encoders.bundle_tar import unpacked
    from tcl.weights.description import describe_bundle
    from tcl.weights.find import BUNDLE_FILE

    named = model or os.environ.get("TCL_MODEL") or ""
    folder = unpacked(Path(named)) if named.endswith(".tar") else Path(named)
    if named and (folder / BUNDLE_FILE).is_file():
        return replace(describe_bundle(folder), location=named)
    from tcl.weights.describe import describe

    return describe(model)


def _show(description: Description, keys: bool) -> None:
    facts: dict[str, object] = {"kind": description.kind, "location": description.location}
    if description.model_hash:
        facts["hash"] = description.model_hash
    facts |= description.architecture
    if description.temperature is not None:
        facts["temperature"] = description.temperature
    facts |= {f"parameters, {part}": f"{count:,}" for part, count in description.parameters.items()}
    facts |= description.training | description.bundle
    if "graphs" in facts:
        facts["graphs"] = _graphs(facts["graphs"])
    console.table(["what", "value"], [[name.replace("_", " "), _text(value)] for name, value in facts.items()])
    if description.keys is None:
        return
    if keys:
        console.table(["class", "key", "note"], [list(row) for row in description.keys.rows()])
    else:
        for line in description.keys.lines():
            console.data(line)


def _graphs(graphs: object) -> object:
    """Graphs of a bundle and the precisions of each; the rest of what `bundle.json` says of them is for --json."""
    try:
        return {name: " ".join(entry["precisions"]) for name, entry in graphs.items()}  # type: ignore[attr-defined]
    except (AttributeError, KeyError, TypeError):  # of the first format, or damaged
        return list(graphs) if isinstance(graphs, dict) else graphs


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "none"
    return format_value(value)
