"""The recorded downstream cases of `golden/README.md` as models of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tcl.config.recipe import ModelConfig
from tcl.models.build import attach_head
from tcl.models.task_model import NOT_TRAINED, TaskModel
from tcl.models.tcl import TCL
from tcl.objective.momentum import MomentumTeacher
from tcl.weights.layouts import published_head, task_state

MOMENTUM = 0.995


def close(actual: Tensor, expected: Tensor, name: str, tolerance: float = 2e-5) -> None:
    difference = ((actual - expected).abs() / (1 + expected.abs())).max().item()
    assert actual.shape == expected.shape, name
    assert difference <= tolerance, f"{name}: {difference:.2e}"


def pixels(image_u8: Tensor) -> Tensor:
    return (image_u8.float() - 128) / 64


@dataclass
class TaskCase:
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    state: dict[str, Tensor]
    model: Any  # the model of the task
    teacher: MomentumTeacher

    def check_gradients(self) -> None:
        """The norm of every recorded gradient; nothing else is trained."""
        recorded = dict(self.values["grad_norms"])
        for name, parameter in self.model.named_parameters():
            name = published_name(name)
            assert parameter.grad is None or not parameter.grad.is_sparse, name  # AdamW takes dense ones alone
            if parameter.grad is None:
                assert not parameter.requires_grad and name not in recorded, name
            elif name.endswith((".key.bias", "attn.qkv.bias")):  # rounding noise in part, see golden/README.md
                recorded.pop(name)
            else:
                expected = recorded.pop(name)
                assert abs(parameter.grad.norm().item() - expected) <= 1e-4 * (expected + 1e-3), name
        assert not recorded

    def trained(self) -> set[str]:
        return {published_name(name) for name, p in self.model.named_parameters() if p.requires_grad}

    def recorded_trained(self) -> set[str]:
        names = {name for group in self.values["optimizer"]["groups"] for name in group["params"]}
        return names - set(self.values["params_without_grad"])

    def check_teacher(self) -> None:
        """Every parameter of the moved teacher against its recorded checksum."""
        checksums = self.values["post_checksums"]
        compared = 0
        for name, parameter in self.teacher.model.named_parameters():
            module, dot, rest = published_name(name).partition(".")
            if f"{module}_m{dot}{rest}" in checksums:
                total, norm = checksums[f"{module}_m{dot}{rest}"]
                assert abs(parameter.double().sum().item() - total) < 2e-4, name
                assert abs(parameter.double().norm().item() - norm) < 2e-5 * (norm + 1), name
                compared += 1
        assert compared == len(self.recorded_trained())


def published_name(name: str) -> str:
    return name.replace("text_encoder.bert.", "text_encoder.")


def task_config(values: dict[str, Any], layers: int | None = None) -> ModelConfig:
    bert, sizes = values["bert_config"], values["sizes"]
    return ModelConfig.model_validate(
        {
            "image_encoder": "vit_tiny_patch16_224",
            "image_encoder_args": {
                "patch_size": sizes["patch_size"],
                "embed_dim": bert["encoder_width"],
                "depth": sizes["vision_depth"],
                "num_heads": sizes["vision_heads"],
            },
            "image_size": values["config"]["image_res"],
            "text_encoder_args": {
                "hidden_size": bert["hidden_size"],
                "num_hidden_layers": layers or bert["num_hidden_layers"],
                "num_attention_heads": bert["num_attention_heads"],
                "intermediate_size": bert["intermediate_size"],
                "max_position_embeddings": bert["max_position_embeddings"],
            },
            "pretrained": False,
            "fusion_layer": bert["fusion_layer"],
            "embed_dim": sizes["embed_dim"],
        }
    )


def load_case(golden: Any, name: str, layers: int | None = None) -> TaskCase:
    """A case with model and teacher as recorded; every recorded key must have its place."""
    tensors, values = golden(name)
    config = task_config(values, layers)
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    head = published_head(state, values.get("answer_list"))
    assert head is not None
    model = attach_head(TCL.from_config(config, values["bert_config"]["vocab_size"]), head).eval()
    teacher = MomentumTeacher(model).eval()
    load(model, state)
    theirs = {key.replace("_m.", ".", 1): value for key, value in state.items() if key.partition(".")[0].endswith("_m")}
    if theirs:
        load(teacher.model, theirs)
    return TaskCase(tensors, values, state, model, teacher)


def load(model: TaskModel | TCL, state: dict[str, Tensor]) -> None:
    missing, unexpected = model.load_state_dict(task_state(state), strict=False)
    assert not unexpected
    assert all(name.startswith(NOT_TRAINED) for name in missing), missing
    torch.manual_seed(0)
