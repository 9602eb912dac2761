"""Options that several commands share, defined once so that they read the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption


def _readable(parameters: Any, ctx: Any) -> Any:
    """Flags show no type on the help screen, and choices break between two of them only."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.metavar is None:
            kind = parameter.display_type(ctx)
            parameter.metavar = "" if kind == "<bool>" else kind.replace("|", " | ")
    return parameters


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> Any:
        return _readable(super().get_params(ctx), ctx)


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> Any:
        return _readable(super().get_params(ctx), ctx)


class App(typer.Typer):
    """One command, or a group of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=Group, add_completion=False, **settings)

    def command(self, name: str | None = None, *, epilog: str | None = None, **settings: Any) -> Any:
        return super().command(name, cls=Command, epilog=epilog and _as_written(epilog), **settings)


def option(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """An option in a panel of the help screen."""
    return typer.Option(*names, help=_as_written(help), rich_help_panel=panel, **settings)


def argument(*, metavar: str, help: str, **settings: Any) -> Any:
    """An argument."""
    return typer.Argument(metavar=metavar, help=_as_written(help), **settings)


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell's completion."""
    from tcl.config.files import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Settings of a recipe as `key=`."""
    from tcl.config.recipe import settings

    return [f"{key}=" for key, _ in settings() if key.startswith(incomplete)]


def complete_recipe_or_setting(incomplete: str) -> list[str]:
    """Either, where both may stand."""
    return complete_recipe(incomplete) + complete_setting(incomplete)


def _as_written(text: str) -> str:
    """A text of which rich makes no emoji: `scenes:train:0` is no train."""
    return re.sub(r":(?=\w+:)", "[none]:[/none]", text)


MODEL_PANEL = "Model"
INPUT_PANEL = "Input"
OUTPUT_PANEL = "Output"
SPEED_PANEL = "Speed"


Backend = Literal["auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt"]


Device = Literal["auto", "cpu", "cuda"]


ModelOption = Annotated[
    str | None,
    option(
        "--model",
        "-m",
        help="A run, a model folder, a published .pth or a hub id; for embed and search an exported bundle too. "
        "Default: $TCL_MODEL, else the newest finished run under ./runs.",
        panel=MODEL_PANEL,
    ),
]
BackendOption = Annotated[
    Backend,
    option(
        "--backend",
        help="What computes the vectors. auto: the fastest that `tcl bench` has verified here; else a bundle runs in "
        "ONNX Runtime, any other model in torch. onnx, onnx-trt (its TensorRT provider, a GPU), trt (a GPU) without "
        "--model: the newest bundle under ./exports.",
        panel=MODEL_PANEL,
    ),
]
DeviceOption = Annotated[
    Device, option("--device", help="Where it computes. auto: a GPU when there is one.", panel=MODEL_PANEL)
]
AllowUnverifiedOption = Annotated[
    bool,
    option(
        "--allow-unverified",
        help="Take a bundle that failed its verification: its vectors may differ from the model's.",
        panel=MODEL_PANEL,
    ),
]
JsonOption = Annotated[bool, option("--json", help="Print one JSON object on stdout instead.", panel=OUTPUT_PANEL)]
ImagesOption = Annotated[
    str | None,
    option(
        "--images",
        help="Folder that relative image paths start from. Default: that of the file which names them.",
        panel=INPUT_PANEL,
    ),
]
ImageColumnOption = Annotated[
    str | None,
    option("--image-column", help="Column of images in a table. Default: the usual names.", panel=INPUT_PANEL),
]
TextColumnOption = Annotated[str | None, option("--text-column", help="Column of texts, likewise.", panel=INPUT_PANEL)]
LayerOption = Annotated[
    int | None,
    option(
        "--layer",
        help="The fusion layer to look at, numbered as in BERT. Default: the one at two fifths of the fusion "
        "encoder, which is 8 of 6 to 11 in the published model.",
    ),
]

# --- of the commands that train ------------------------------------------------------------------------------------

RunOption = Annotated[
    Path | None,
    option(
        "--out",
        help="Run folder; must be new, except with --resume. Default: runs/<recipe or task>.",
        panel=OUTPUT_PANEL,
    ),
]
ResumeOption = Annotated[
    bool,
    option(
        "--resume",
        help="Continue the run in --out (or the last one), or start it when there is none.",
        panel=OUTPUT_PANEL,
    ),
]
DryRunOption = Annotated[
    bool,
    option(
        "--dry-run",
        help="Read the recipe and the data, build the model, say what would happen, and write nothing.",
        panel=OUTPUT_PANEL,
    ),
]
TrainingBatchOption = Annotated[
    str | None,
    option(
        "--batch-size",
        metavar="N|auto",
        help="Samples per device and forward pass; auto: as many as fit into memory. Default: the recipe's.",
        panel=SPEED_PANEL,
    ),
]

# --- of evaluations ------------------------------------------------------------------------------------------------

ImageSizeOption = Annotated[
    str | None,
    option(
        "--image-size",
        metavar="PIXELS",
        help="Read images at this size, as 384 or 256x384 (height x width), rather than at that of training; the "
        "position embeddings are resampled.",
        panel=MODEL_PANEL,
    ),
]
BatchOption = Annotated[int, option("--batch-size", min=1, help="Images and texts at once.", panel=SPEED_PANEL)]
WorkersOption = Annotated[int, option("--workers", min=1, help="Decoding threads.", panel=SPEED_PANEL)]
PredictionsOption = Annotated[
    Path | None,
    option(
        "--predictions",
        metavar="JSONL",
        help="Write what the model says of each row, with its confidence; a file that is there is replaced.",
        panel=OUTPUT_PANEL,
    ),
]
