"""What a model is: kind, sizes, parameters, training, and what became of each key. For people and for JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from tcl.config.files import parse_yaml
from tcl.config.recipe import ModelConfig, one_line
from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tcl.weights.description import Description, describe_bundle
from tcl.weights.files import META_FILE, checkpoints, weights_error
from tcl.weights.find import CONFIG_FILE, WEIGHTS_FILE, find_model, read_json
from tcl.weights.keyreport import Shape, account
from tcl.weights.layouts import Place, task_state
from tcl.weights.model_folder import read_head, with_head
from tcl.weights.published import ANSWERS_FILE, Reference, head_of, infer_config, report_task, shapes
from tcl.weights.sources import open_source
from tcl.weights.untrained import parts_of, read_untrained

TAIL = 1 << 16  # bytes of a metrics file that hold its last records
PARTS = ("image_encoder", "text_encoder", "fusion_encoder", "projections", "itm_head", "mlm_head")  # in this order
RECIPE_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"


def describe(source: str | None = None) -> Description:
    """Describe a run (finished or not), model folder, checkpoint, published `.pth`, bundle or hub id.

    Raises:
        UsageError: there is no such thing.
        CheckpointError: it is damaged.
    """
    if source is not None and _is_run(Path(source)):
        return _run(Path(source))
    found = find_model(source)
    if found.kind == "bundle":
        return describe_bundle(found.path)
    opened = open_source(found)
    if isinstance(opened, Reference):
        return _published(opened)
    if opened.name == "model" and _is_run(opened.parent):
        return _run(opened.parent)
    return _folder(opened, found.location)


def _run(run: Path) -> Description:
    saved = checkpoints(run)
    finished = (run / "model" / CONFIG_FILE).is_file()
    if not finished and not saved:
        return Description("run", str(run), training={"finished": False, "checkpoints": [], **_recipe_of(run)})
    folder = run / "model" if finished else saved[-1]
    description = _folder(folder, str(run))
    description.kind = "run"
    meta = read_json(saved[-1] / META_FILE) if saved else {}
    description.training = {
        "finished": finished,
        "step": meta.get("step"),
        "epoch": meta.get("epoch"),
        "checkpoints": [path.name for path in saved],
        **_recipe_of(run),
        "last": _last_records(run / METRICS_FILE),
    }
    return description


def _folder(folder: Path, location: str) -> Description:
    values = read_json(folder / CONFIG_FILE)
    try:
        config = ModelConfig.model_validate(values["model"])
        vocab_size = int(str(values["vocab_size"]))
        head = read_head(values)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: describes no TCL model: {one_line(error)}",
            hint="a model folder of this package has `model` and `vocab_size` in it",
        ) from error
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dictionary
            temperature = file.get_tensor("temp").item() if there.get("temp") == () else None
    except (OSError, SafetensorError) as error:
        raise weights_error(folder / WEIGHTS_FILE, hint="copy the model folder again") from error
    report = account(location, "model", there, _expected(config, vocab_size, head), Place)
    description = Description(
        "checkpoint" if (folder / META_FILE).is_file() else "model folder",
        location,
        str(values.get("model_hash")),
        _architecture(config, vocab_size, head) | _untrained(read_untrained(values)),
        temperature,
        _parameters(there, config.fusion_layer),
        keys=report,
        problem=report.problem(lambda name: False),
    )
    if description.kind == "checkpoint":
        meta: Mapping[str, Any] = read_json(folder / META_FILE)
        description.training = {"step": meta.get("step"), "epoch": meta.get("epoch"), **_settings(meta.get("recipe"))}
    return description


def _published(reference: Reference) -> Description:
    state = reference.renamed()
    config, vocab_size = infer_config(state, reference.place)
    layout = reference.layout
    try:
        head, known = head_of(reference), True
    except UsageError:  # of VQA without its answers, which decide no key
        head, known = head_of(reference, ["unknown"]), False
    expected, architecture = _expected(config, vocab_size, head), _architecture(config, vocab_size, head)
    if not known:
        architecture["labels"] = f"unknown: no {ANSWERS_FILE} beside it"
    if head:
        state = task_state(reference.state)
        report = report_task(reference, expected)
    else:
        report = account(reference.place, layout.kind, shapes(reference.state), expected, layout.place)
    architecture |= _untrained(parts_of(report.missing))
    temperature = state["temp"].item() if "temp" in state and state["temp"].numel() == 1 else None
    return Description(
        f"published checkpoint ({layout.kind})",
        reference.place,
        None,
        architecture,
        temperature,
        _parameters(shapes(state), config.fusion_layer),
        {"beside the model": reference.others} if reference.others else {},
        keys=report,
        problem=report.problem(reference.lacks),
    )


def _expected(config: ModelConfig, vocab_size: int, head: HeadConfig | None = None) -> dict[str, Shape]:
    """The keys of a model of these sizes, without the memory for it."""
    with torch.device("meta"):
        return shapes(with_head(TCL.from_config(config, vocab_size), head).state_dict())


def _architecture(config: ModelConfig, vocab_size: int, head: HeadConfig | None = None) -> dict[str, Any]:
    text = config.text_encoder_args
    return {
        **({"task": head.task, "labels": len(head.labels)} if head else {}),
        "image_encoder": config.image_encoder,
        **({"image_encoder_args": config.image_encoder_args} if config.image_encoder_args else {}),
        "image_size": config.image_size,
        "text_layers": config.fusion_layer,
        "fusion_layers": text.num_hidden_layers - config.fusion_layer,
        "text_width": text.hidden_size,
        "text_heads": text.num_attention_heads,
        "vocab_size": vocab_size,
        "max_length": config.max_length,
        "embed_dim": config.embed_dim,
    }


def _untrained(parts: Sequence[str]) -> dict[str, Any]:
    return {"untrained": list(parts)} if parts else {}


def _parameters(there: Mapping[str, Shape], fusion_layer: int) -> dict[str, int]:
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in there.items():
        part = _part(name, fusion_layer)
        counts[part] = counts.get(part, 0) + prod(shape)
    return {part: count for part, count in counts.items() if count} | {"total": sum(counts.values())}


def _part(name: str, fusion_layer: int) -> str:
    layer = re.match(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.", name)
    if layer and int(layer[1]) >= fusion_layer:
        return "fusion_encoder"
    if name.startswith("text_encoder.cls."):
        return "mlm_head"
    component = name.partition(".")[0]
    known = {"visual_encoder": "image_encoder", "vision_proj": "projections", "text_proj": "projections"}
    return known.get(component, component)


def _is_run(path: Path) -> bool:
    return path.is_dir() and not (path / CONFIG_FILE).exists() and (path / RECIPE_FILE).is_file()


def _recipe_of(run: Path) -> dict[str, Any]:
    try:
        return _settings(parse_yaml((run / RECIPE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"{run / RECIPE_FILE}: cannot be read: {reason_of(error)}", hint="is it a run folder?"
        ) from error


def _settings(recipe: Any) -> dict[str, Any]:
    """What of a recipe says how a model was trained."""
    shown = {"data": ("train", "batch_size"), "optim": ("lr",), "train": ("epochs", "steps", "seed", "precision")}
    sections = recipe if isinstance(recipe, dict) else {}
    return {
        f"{section}.{key}": sections[section][key]
        for section, keys in shown.items()
        for key in keys
        if isinstance(sections.get(section), dict) and sections[section].get(key) is not None
    }


def _last_records(path: Path) -> dict[str, Any]:
    """The newest value of each metric; a line that a killed process left half written is passed over."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        lines = file.read().splitlines()
    values: dict[str, Any] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            values |= record
    return values
