"""Options that several commands share, defined once so that they read the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

MODEL_PANEL = "Model"
INPUT_PANEL = "Input"
OUTPUT_PANEL = "Output"
SPEED_PANEL = "Speed"


class Backend(StrEnum):
    """What computes the vectors."""

    auto = "auto"
    torch = "torch"
    torch_compiled = "torch-compiled"
    onnx = "onnx"
    trt = "trt"


class Device(StrEnum):
    """Where a model computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A run, a model folder, a published .pth or a hub id; for embed and search an exported bundle too. "
        "Default: $TCL_MODEL, else the newest finished run under ./runs.",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend",
        help="What computes the vectors. auto: the fastest that `tcl bench` has verified here; else a bundle runs in "
        "ONNX Runtime, any other model in torch. onnx, trt (a GPU) without --model: the newest bundle under ./exports.",
        rich_help_panel=MODEL_PANEL,
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", help="Where it computes. auto: a GPU when there is one.", rich_help_panel=MODEL_PANEL),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead.", rich_help_panel=OUTPUT_PANEL)
]
