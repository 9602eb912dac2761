"""Small data and recipes for every task of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tcl.config.recipe import ModelConfig, Recipe, build_recipe
from tcl.models.tcl import TCL
from tests.conftest import make_tiny_model

TASKS = ("text_assignment", "retrieval", "grounding", "entailment", "nlvr2", "vqa")
COLOURS = ("red", "green", "blue", "green, I think", "red")


def scene(number: int, split: str = "train") -> str:
    return f"scenes:{split}:0:{number}"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def statement(task: str, number: int, label: str) -> dict[str, Any]:
    images = {"image": scene(number)} if task == "entailment" else {"images": [scene(number), scene(number + 1)]}
    return {**images, "text": f"there is a circle number {number}", "label": label}


def question(number: int, **changes: Any) -> dict[str, Any]:
    answers = [COLOURS[number % 5], COLOURS[(number + 1) % 5]]
    return {"image": scene(number), "question": f"what colour is shape {number}?", "answers": answers} | changes


def write_task(folder: Path, task: str, rows: int = 9) -> tuple[str, str]:
    """Training and validation data of a task."""
    if task in ("text_assignment", "retrieval"):
        return f"scenes:train:{rows}", "scenes:val:6"
    if task == "grounding":
        return f"scenes:train:{rows}", "scenes:val:3"
    if task == "vqa":
        made = [question(number) for number in range(rows)]
    else:
        labels = ("yes", "no", "unclear") if task == "entailment" else ("True", "False")
        made = [statement(task, number, labels[number % len(labels)]) for number in range(rows)]
    return write_rows(folder / f"{task}.jsonl", made), write_rows(folder / f"{task}-val.jsonl", made[:5])


def recipe_for(
    task: str, init: Path | str, source: str, val_source: str = "", model: ModelConfig | None = None, **changes: Any
) -> Recipe:
    """A run of a few steps that starts from a model folder."""
    config = model or make_tiny_model().config
    sections: dict[str, Any] = {
        "task": task,
        "model": config.model_dump() | {"init": str(init), "pretrained": False, "tokenizer": "train"},
        "loss": {"queue_size": 13, "momentum": 0.9},
        "optim": {"lr": 1e-3, "warmup_lr": 1e-4, "min_lr": 1e-4, "warmup_steps": 1},
        "data": {
            "train": [source],
            "val": [val_source] if val_source else [],
            "batch_size": 3,
            "workers": 0,
            "augment": "mild",
        },
        "train": {"steps": 2, "checkpoint_every": 1, "eval_every": 1, "log_every": 1},
    }
    for name, values in changes.items():
        sections[name] |= values
    return build_recipe(sections)


def head_weights(model: TCL) -> dict[str, Any]:
    names = ("cls_head.", "ta_head.", "text_decoder.")
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(names)}
