"""Models and training states on disk.

    runs/<name>/checkpoints/step-00001000/    a model folder, and with it all that training needs to go on
        model.safetensors  config.json  tokenizer.json  preprocess.json  README.md
        train_state.pt     optimizer, teacher, queues, random generators (tensors only)
        meta.json          step, epoch, resolved recipe, fingerprint of the data
    runs/<name>/model/                        the model folder of the finished run

Each folder is written under a temporary name and renamed, so one that has its name is complete.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import tcl
from tcl.config.recipe import ModelConfig, one_line
from tcl.damage import damage, is_of_torch
from tcl.data.processor import Processor
from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.files.atomic import atomic_folder
from tcl.files.hub import quiet_hub
from tcl.models.heads import HeadConfig, attach_head
from tcl.models.lora import merged_state_dict
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tcl.weights.find import CONFIG_FILE, find_model, read_json
from tcl.weights.untrained import lacking, read_untrained

WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "train_state.pt"
META_FILE = "meta.json"
MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, "tokenizer.json", "preprocess.json")
FORMAT_VERSION = 1
AGAIN = "copy the model folder again, or take a checkpoint of its run"


def save_model(model: TCL, folder: Path) -> None:
    """Write a model folder, replacing the model that may be there.

    Raises:
        UsageError: the folder exists and holds something other than a model.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder} exists and is no model folder", hint="choose another folder")
    with atomic_folder(folder, replace=True) as temporary:
        write_model(model, temporary)


def write_model(model: TCL, folder: Path) -> None:
    """Write the files of a model folder into an existing folder."""
    weights = merged_state_dict(model)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    model.processor.save(folder)
    model.model_hash = hash_model(model)
    config = {
        "format_version": FORMAT_VERSION,
        "tcl_version": tcl.__version__,
        "model_hash": model.model_hash,
        "vocab_size": model.text_encoder.bert.embeddings.word_embeddings.num_embeddings,
        "model": model.config.model_dump(),
        "head": model.head.model_dump() if isinstance(model, TaskModel) else None,
        "untrained": list(model.untrained),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(model), encoding="utf-8")


def hash_model(model: TCL) -> str:
    """SHA-256 of everything that decides a vector: weights, sizes, vocabulary, preprocessing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(merged_state_dict(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(json.dumps(model.processor.settings(), sort_keys=True).encode())
    digest.update(model.processor.tokenizer.to_json().encode())
    return digest.hexdigest()


def load_model(source: str | Path) -> TCL:
    """Load a run, a model folder, a published `.pth` or a hub id; see `TCL.from_pretrained`."""
    found = find_model(str(source))
    if found.kind == "reference":
        from tcl.weights.published import load_reference

        return load_reference(found.path)
    if found.kind == "bundle":
        raise UsageError(
            f"{found.location} is an exported bundle; its weights cannot be loaded back",
            hint="give the run or model folder that it was exported from",
        )
    return load_model_folder(found.path if found.kind == "model" else fetch_model(found.location))


def load_model_folder(folder: Path) -> TCL:
    """Load a model folder in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged, or the parts do not belong together.
    """
    config = read_json(folder / CONFIG_FILE)
    try:
        model_config = ModelConfig.model_validate(config["model"])
        vocab_size = int(str(config["vocab_size"]))
        model = with_head(TCL.from_config(model_config, vocab_size), read_head(config))
        model.untrained = read_untrained(config)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: lacks {error}", hint=AGAIN) from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {one_line(error)}", hint=AGAIN) from error
    except (OSError, SafetensorError) as error:
        raise damage(folder / WEIGHTS_FILE, hint=AGAIN) from error
    except RuntimeError as error:  # from load_state_dict
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: {reason_of(error)}", hint=AGAIN
        ) from error
    model.processor = Processor.load(folder)
    if model.processor.tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: its vocabulary has {model.processor.tokenizer.vocab_size} words, "
            f"the model {vocab_size}",
            hint="use the tokenizer the model was trained with",
        )
    # Computed, not read: a file that was changed by hand must not pass for the model it was.
    model.model_hash = hash_model(model)
    return model.eval()


def read_head(config: Mapping[str, object]) -> HeadConfig | None:
    """The task and classes in the `config.json` of a model folder; None for a model without a task.

    Raises:
        ValidationError: they are malformed.
    """
    head = config.get("head")
    return None if head is None else HeadConfig.model_validate(head)


def with_head(model: TCL, head: HeadConfig | None) -> TCL:
    """The model with its head, where it has one."""
    return model if head is None else attach_head(model, head)


def save_checkpoint(run: Path, model: TCL, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write `checkpoints/step-<step>` of a run.

    Args:
        run: the run folder.
        model: the trained model.
        state: tensors and plain values only.
        meta: a JSON object with `step`.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; nothing of it is left.
    """
    folder = run / "checkpoints" / f"step-{meta['step']:08d}"
    if folder.is_dir():  # complete, and a resumed run computes the same again
        return folder
    try:
        with atomic_folder(folder) as temporary:
            write_model(model, temporary)
            torch.save(state, temporary / STATE_FILE)
            (temporary / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk comes as any of the three
        raise CheckpointError(
            f"{folder}: cannot be written: {reason_of(error)}; earlier checkpoints are intact",
            hint=f"free some space, then continue with --resume --out {run}",
        ) from error
    return folder


def prune_checkpoints(run: Path, keep: int, spare: Collection[Path] = ()) -> None:
    """Delete all checkpoints of a run but the newest.

    Args:
        run: the run folder.
        keep: how many to keep.
        spare: folders that are still needed, such as those that are being copied.
    """
    for old in checkpoints(run)[:-keep]:
        if old not in spare:
            doomed = old.with_name(f".{old.name}.old")  # half deleted, it must not pass for a checkpoint
            old.rename(doomed)
            shutil.rmtree(doomed)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, training state and meta of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        weights = load_file(folder / WEIGHTS_FILE)
        return weights, read_tensors(folder / STATE_FILE), read_json(folder / META_FILE)
    except (OSError, SafetensorError) as error:
        raise damage(
            folder / WEIGHTS_FILE, hint="delete this checkpoint folder to resume from the one before it"
        ) from error


def read_tensors(path: Path, lazily: bool = False) -> dict[str, Any]:
    """`torch.load` that never runs code from the file.

    Args:
        path: the file.
        lazily: map the file rather than read it: a tensor costs nothing until it is used.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch comments on the pickle's protocol; ours is to refuse or not
            mmap = lazily and zipfile.is_zipfile(path)  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if not is_of_torch(path):  # whatever it is, nobody meant it as a pickle
            raise damage(path) from error
        raise CheckpointError(
            f"{path}: refused: it is no plain checkpoint, and loading it could run code",
            hint="a checkpoint of tensors, numbers and strings is accepted; ask for one, or for safetensors",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise damage(path) from error


def fetch_model(hub_id: str, names: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a hub repository with those of the files `names` that it has.

    Raises:
        UsageError: there is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            return Path(snapshot_download(hub_id, allow_patterns=list(names)))
    except Exception as error:  # the hub client raises many kinds, from its HTTP library too
        raise UsageError(
            f"{hub_id}: neither a file or folder here nor a model that could be fetched from the hub: "
            f"{reason_of(error)}",
            hint="check the name and the network, or give a folder",
        ) from error


def _model_card(model: TCL) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    height, width = model.processor.image_size
    task = f"Fine-tuned for {model.head.task}. " if isinstance(model, TaskModel) else ""
    use = "    tcl embed images/ --out vecs.npy --model THIS_FOLDER\n    tcl export --model THIS_FOLDER\n"
    if parts := lacking(model.untrained, "vectors"):
        use = f"It has no trained {' or '.join(parts)}: it is for its task, and gives no vectors.\n"
    return (
        f"# A TCL model\n\n{task}"
        f"{parameters / 1e6:.1f} M parameters, {height}x{width} pixels, {model.processor.max_length} tokens, "
        f"vectors of {model.config.embed_dim}, hash `{model.model_hash[:12]}`.\n\n{use}"
    )
