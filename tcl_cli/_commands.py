"""The commands of `tcl`: where each is listed, what it is for, and where it stands.

Only the command that is run is imported and built, so that it starts as fast as if it were alone.
"""

from __future__ import annotations

from typing import Any

import typer

from tcl_cli._options import Group

COMMANDS = {
    "Train and evaluate": {
        "pretrain": "Pre-train a model on image-text pairs; without arguments, the demo.",
        "finetune": "Fine-tune a model for a task.",
        "eval": "Evaluate a model with the published metrics of a task.",
    },
    "Use a model": {
        "embed": "Turn images or texts into vectors, with ids that match row by row.",
        "search": "Find the nearest images or texts to a query.",
        "index": "Build an index of vectors, with its measured recall, or write them to a database.",
        "dedup": "Find groups of near-duplicates.",
        "explain": "Draw a heat map of an image for each word of a caption (Grad-CAM of the fusion encoder).",
        "export": "Write a model as ONNX graphs that provably compute the same vectors.",
        "bench": "Measure every way in which this machine can compute a model's vectors.",
        "inspect": "Say what a model is: sizes, parameters, training, and what became of each key of its file.",
        "convert": "Convert a published checkpoint to a model folder, or a model to the published format.",
    },
    "Settings and data": {
        "scenes": "Render built-in scenes to PNG files with their captions.",
        "doctor": "Say what is installed, where it would compute, and what is missing.",
        "data": "Check image-text pairs, and pack them for fast training.",
        "recipes": "Find, read, copy and check training recipes.",
    },
}
"""Commands and their first sentences, by the panel of `tcl --help` that lists them."""


def load(name: str | None) -> Any:
    """The command of this name, or the group of commands, with all its options."""
    match name:
        case "pretrain":
            from tcl_cli.train.pretrain import app
        case "finetune":
            from tcl_cli.train.finetune import app
        case "eval":
            from tcl_cli.eval.app import app
        case "embed":
            from tcl_cli.embed import app
        case "search":
            from tcl_cli.search import app
        case "index":
            from tcl_cli.index import app
        case "dedup":
            from tcl_cli.dedup import app
        case "explain":
            from tcl_cli.explain import app
        case "export":
            from tcl_cli.export import app
        case "bench":
            from tcl_cli.bench import app
        case "inspect":
            from tcl_cli.inspect import app
        case "convert":
            from tcl_cli.convert import app
        case "scenes":
            from tcl_cli.scenes import app
        case "doctor":
            from tcl_cli.doctor import app
        case "data":
            from tcl_cli.data import app
        case _:
            from tcl_cli.recipes import app
    command = typer.main.get_command(app)
    command.name = name
    return command


class Commands(Group):
    """Lists commands by `COMMANDS`, and loads the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(name), rest


def add_commands(app: typer.Typer) -> None:
    """List all commands in an application of the class `Commands`."""
    for panel, commands in COMMANDS.items():
        for name, summary in commands.items():
            app.command(name, help=summary, rich_help_panel=panel)(lambda: None)
