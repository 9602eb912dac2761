"""Tiny models with a head, as folders."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from tcl import TCL
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig, Task


def save_fine_tuned(model: TCL, task: Task, labels: list[str], name: str) -> str:
    """Write `model` with a random head into the folder `name`."""
    torch.manual_seed(1)
    attach_head(copy.deepcopy(model), HeadConfig(task=task, labels=labels, decoder_layers=2)).save_pretrained(name)
    return name


def write_rows(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
