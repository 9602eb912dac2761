"""Options that several commands share, defined once so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL_PANEL = "Model"
INPUT_PANEL = "Input"
OUTPUT_PANEL = "Output"
SPEED_PANEL = "Speed"


Backend = Literal["auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt"]


Device = Literal["auto", "cpu", "cuda"]


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
        "ONNX Runtime, any other model in torch. onnx, onnx-trt (its TensorRT provider, a GPU), trt (a GPU) without "
        "--model: the newest bundle under ./exports.",
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
ImagesOption = Annotated[
    str | None,
    typer.Option(
        "--images",
        help="Folder that relative image paths start from. Default: that of the file which names them.",
        show_default=False,
        rich_help_panel=INPUT_PANEL,
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer",
        help="The fusion layer to look at, numbered as in BERT. Default: the one at two fifths of the fusion "
        "encoder, which is 8 of 6 to 11 in the published model.",
        show_default=False,
    ),
]

# --- of the commands that train ------------------------------------------------------------------------------------

RunOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Run folder; must be new, except with --resume. Default: runs/<recipe or task>.",
        show_default=False,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --out (or runs/latest), or start it when there is none.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Read the recipe and the data, build the model, say what would happen, and write nothing.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
TrainingBatchOption = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Samples per device and forward pass; auto: as many as fit into memory. Default: the recipe's.",
        show_default=False,
        rich_help_panel=SPEED_PANEL,
    ),
]

# --- of evaluations ------------------------------------------------------------------------------------------------

ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        help="Read images at this size, as 384 or 256x384 (height x width), rather than at that of training; the "
        "position embeddings are resampled.",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images and texts at once.", rich_help_panel=SPEED_PANEL)
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Decoding threads.", rich_help_panel=SPEED_PANEL)]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="JSONL",
        help="Write what the model says of each row, with its confidence; a file that is there is replaced.",
        show_default=False,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
