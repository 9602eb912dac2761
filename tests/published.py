"""Published checkpoints for tests: the recorded states, written as files, and models that they fit into."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcl.config.recipe import ModelConfig
from tcl.models.tcl import TCL
from tcl.weights.keyreport import KeyReport
from tcl.weights.layouts import NOT_THE_MODEL, Layout
from tests.conftest import GOLDEN, TINY

# Published models have heads of 64, and the fixtures' are narrower.
WIDE = TINY | {
    "image_encoder_args": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1},
    "text_encoder_args": TINY["text_encoder_args"] | {"hidden_size": 64, "num_attention_heads": 1},
}

Golden = Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]


def recorded_state(golden: Golden, case: str) -> dict[str, Tensor]:
    """The state that the published code had, in an order of its own."""
    tensors = golden(case)[0]
    names = sorted((name for name in tensors if name.startswith("state/")), key=lambda name: name[::-1])
    return {name.removeprefix("state/"): tensors[name] for name in names}


def rename_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Recorded keys by this model's names; teacher and queues are dropped, what has no place keeps its name."""
    layout = Layout("retrieval", bare=not any(name.startswith("text_encoder.bert.") for name in state))
    return {
        layout.place(name).target or name: tensor for name, tensor in state.items() if not NOT_THE_MODEL.match(name)
    }


def write_pth(path: Path, state: dict[str, Tensor], **others: Any) -> Path:
    """A `.pth` as the published code writes it, with the vocabulary of the fixtures beside it."""
    torch.save({"model": state, **others}, path)
    shutil.copy(GOLDEN / "vocab.txt", path.parent / "vocab.txt")
    return path


def model_for(golden: Golden, case: str, **changes: Any) -> TCL:
    """A fresh model that the weights of a recorded case fit into."""
    tensors, values = golden(case)
    bert, sizes = values["bert_config"], values["sizes"]
    paired = "nlvr" in case
    config = {
        "image_encoder": "vit_tiny_patch16_224",
        "image_encoder_args": {
            "patch_size": tensors["state/visual_encoder.patch_embed.proj.weight"].shape[-1],
            "embed_dim": bert["encoder_width"],
            "depth": sizes["vision_depth"],
            "num_heads": sizes["vision_heads"],
        },
        "image_size": values["config"]["image_res"],
        "text_encoder_args": {
            "hidden_size": bert["hidden_size"],
            "num_hidden_layers": 12 if paired else bert["num_hidden_layers"],
            "num_attention_heads": bert["num_attention_heads"],
            "intermediate_size": bert["intermediate_size"],
            "max_position_embeddings": bert["max_position_embeddings"],
        },
        "pretrained": False,
        "fusion_layer": 6 if paired else bert["fusion_layer"],
        "embed_dim": sizes["embed_dim"],
    }
    torch.manual_seed(7)
    return TCL.from_config(ModelConfig.model_validate(config | changes), bert["vocab_size"])


def check_accounted(report: KeyReport, theirs: set[str], ours: set[str]) -> None:
    """Every key of file and model is in exactly one class."""
    misfits = (report.resized, report.wrong_shape)
    of_model = [*report.loaded, *report.remapped, *report.missing, *(name for fits in misfits for name in fits)]
    of_file = [*report.loaded, *report.remapped.values(), *report.unused, *report.unknown]
    of_file += [fit.source for fits in misfits for fit in fits.values()]
    assert sorted(of_model) == sorted(ours)
    assert sorted(of_file) == sorted(theirs)


def make_like(model: TCL) -> TCL:
    """Another model of the same sizes."""
    torch.manual_seed(11)
    return TCL.from_config(model.config, model.text_encoder.bert.embeddings.word_embeddings.num_embeddings)


def tiny_vocabulary(model: TCL) -> int:
    return model.text_encoder.bert.embeddings.word_embeddings.num_embeddings
