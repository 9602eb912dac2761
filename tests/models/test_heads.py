"""Heads on a model: what stays, what is stored, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tcl.data.labels.classes import ASSIGNMENT, ENTAILMENT, NLVR2
from tcl.errors import UsageError
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tcl.weights.layouts import published_head

HEADS: list[dict[str, Any]] = [
    {"task": "entailment", "labels": ["good", "so-so", "bad"]},
    {"task": "nlvr2", "labels": list(NLVR2)},
    {"task": "text_assignment", "labels": list(ASSIGNMENT)},
    {"task": "vqa", "labels": ["yes", "no", "2"], "decoder_layers": 2},
]


@pytest.mark.parametrize("values", HEADS, ids=lambda values: values["task"])
def test_a_task_model_comes_back_from_its_weights_and_its_head(
    fresh_model: TCL, tmp_path: Path, values: dict[str, Any]
) -> None:
    model = attach_head(fresh_model, HeadConfig.model_validate(values))
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # refuses tensors that share memory
    stored = json.loads(json.dumps(model.head.model_dump()))
    base = TCL.from_config(fresh_model.config, fresh_model.processor.tokenizer.vocab_size)
    again = attach_head(base, HeadConfig.model_validate(stored))
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert type(again) is type(model) and again.head == model.head
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@torch.no_grad()
@pytest.mark.parametrize("values", HEADS, ids=lambda values: values["task"])
def test_a_task_model_embeds_and_matches_as_before(tiny_model: TCL, fresh_model: TCL, values: dict[str, Any]) -> None:
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(5, 50, (2, 6))
    before = tiny_model.encode_image(pixels), tiny_model.encode_text(ids, torch.ones_like(ids))
    model = attach_head(fresh_model, HeadConfig.model_validate(values))
    assert not model.training and model.processor is fresh_model.processor
    after = model.encode_image(pixels), model.encode_text(ids, torch.ones_like(ids))
    assert torch.equal(after[0].image_feat, before[0].image_feat)
    assert torch.equal(after[1].text_feat, before[1].text_feat)
    assert torch.equal(model.match(*after), tiny_model.match(*before))


def test_a_head_that_fits_is_kept(fresh_model: TCL) -> None:
    head = HeadConfig(task="entailment", labels=list(ENTAILMENT))
    model = attach_head(fresh_model, head)
    assert attach_head(model, head).cls_head is model.cls_head
    other = attach_head(model, HeadConfig(task="entailment", labels=["yes", "no"]))
    assert other.cls_head is not model.cls_head and other.cls_head[2].out_features == 2
    turned = attach_head(model, HeadConfig(task="entailment", labels=list(ENTAILMENT)[::-1]))
    assert turned.cls_head is not model.cls_head


def test_text_assignment_prepares_nlvr2(fresh_model: TCL) -> None:
    """What was learned for both images stays, the layers of the second one included."""
    head = HeadConfig(task="text_assignment", labels=list(ASSIGNMENT))
    assigner = attach_head(fresh_model, head)
    for parameter in assigner.parameters():
        torch.nn.init.normal_(parameter)
    learned = {name: tensor.clone() for name, tensor in assigner.text_encoder.state_dict().items()}
    again = attach_head(assigner, head)
    assert again.ta_head is assigner.ta_head
    model = attach_head(again, HeadConfig(task="nlvr2", labels=list(NLVR2)))
    for name, tensor in model.text_encoder.state_dict().items():
        assert torch.equal(tensor, learned.pop(name)), name
    assert not learned and not hasattr(model, "ta_head")


def test_two_images_do_not_become_one(fresh_model: TCL) -> None:
    model = attach_head(fresh_model, HeadConfig(task="nlvr2", labels=list(NLVR2)))
    with pytest.raises(UsageError, match="entailment reads one image"):
        attach_head(model, HeadConfig(task="entailment", labels=list(ENTAILMENT)))


def test_published_checkpoints_by_their_keys(fresh_model: TCL) -> None:
    state = {name.replace("text_encoder.bert.", "text_encoder."): w for name, w in fresh_model.state_dict().items()}
    assert published_head(state) is None  # of retrieval
    with pytest.raises(UsageError, match="no answers to choose from"):
        published_head({**state, "text_decoder.cls.predictions.bias": torch.zeros(3)})
    own_labels = published_head({**state, "cls_head.2.weight": torch.zeros(4, 8)})
    assert own_labels is not None and own_labels.labels == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"task": "entailment", "labels": ["only"]}, "at least 2 labels"),
        ({"task": "entailment", "labels": ["a", "b", "a"]}, "'a' stands there twice"),
        ({"task": "vqa", "labels": []}, "at least 1"),
        ({"task": "captioning", "labels": ["a", "b"]}, "task"),
        ({"task": "vqa", "labels": ["a"], "layers": 3}, "layers"),
    ],
)
def test_bad_heads(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        HeadConfig.model_validate(values)
