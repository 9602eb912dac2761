"""A model folder, written and read back.

    model.safetensors  config.json  tokenizer.json  preprocess.json  README.md

A finished run has one, `runs/<name>/model/`. The folder is written under a temporary name and renamed, so one that has
its name is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tcl.config.recipe import ModelConfig, one_line
from tcl.data.processor import PREPROCESS_FILE, Processor
from tcl.errors import CheckpointError, UsageError, reason_of
from tcl.files.atomic import atomic_folder
from tcl.models.adapters import merged_state_dict
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL
from tcl.version import __version__
from tcl.weights.files import AGAIN, hash_model, save_tensors, weights_error
from tcl.weights.find import CONFIG_FILE, WEIGHTS_FILE, read_json
from tcl.weights.untrained import lacking, read_untrained

FORMAT_VERSION = 1


def save_model(model: TCL, folder: str | Path) -> None:
    """Write weights, configuration, tokenizer and preprocessing, replacing the model that may be there.

    Args:
        model: the model.
        folder: `load_model` reads it back.

    Raises:
        UsageError: the folder exists and holds something other than a model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder} exists and is no model folder", hint="choose another folder")
    with atomic_folder(folder, replace=True) as temporary:
        write_model(model, temporary)


def write_model(model: TCL, folder: Path) -> None:
    """Write the files of a model folder into an existing folder."""
    weights = merged_state_dict(model)
    save_tensors({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    model.processor.save(folder)
    model.model_hash = hash_model(model)
    config = {
        "format_version": FORMAT_VERSION,
        "tcl_version": __version__,
        "model_hash": model.model_hash,
        "vocab_size": model.text_encoder.bert.embeddings.word_embeddings.num_embeddings,
        "model": model.config.model_dump(),
        "head": model.head.model_dump() if isinstance(model, TaskModel) else None,
        "untrained": list(model.untrained),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(model), encoding="utf-8")


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
        raise weights_error(folder / WEIGHTS_FILE, hint=AGAIN) from error
    except RuntimeError as error:  # from load_state_dict
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: {reason_of(error)}", hint=AGAIN
        ) from error
    model.processor = Processor.load(folder)
    if model.processor.image_size != model_config.image_shape:
        raise CheckpointError(
            f"{folder / PREPROCESS_FILE}: its image_size {list(model.processor.image_size)} is not that of "
            f"{CONFIG_FILE}, {list(model_config.image_shape)}",
            hint=AGAIN,
        )
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
