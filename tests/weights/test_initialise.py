"""Training starts from what exists: published checkpoints, own models, encoders of libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tcl.data.tokenizer import CaptionTokenizer
from tcl.errors import CheckpointError, ConfigError, UsageError
from tcl.models.tcl import TCL
from tcl.models.vision import resize_position_embeddings
from tcl.weights.initialize import initialise, load_pretrained_encoders
from tcl.weights.layouts import TWIN_LAYER
from tcl.weights.sources import open_weights
from tests.conftest import CAPTIONS, GOLDEN
from tests.published import (
    Golden,
    check_accounted,
    make_like,
    model_for,
    recorded_state,
    tiny_vocabulary,
    write_pth,
)

# --- there and back ----------------------------------------------------------------------------------------------


# --- every key is accounted for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "kind", "fresh"),
    [
        ("pretrain", "pre-training", set()),
        ("retrieval", "retrieval", {"text_encoder"}),
        ("vqa", "VQA", {"text_encoder", "vision_proj", "text_proj", "itm_head", "temp"}),
        ("ve", "entailment", {"text_encoder", "vision_proj", "text_proj", "itm_head", "temp"}),
        ("nlvr", "NLVR2", {"text_encoder", "vision_proj", "text_proj", "itm_head", "temp"}),
        ("pretrain_nlvr", "text assignment", {"text_encoder", "itm_head"}),
        ("grounding", "retrieval", {"text_encoder"}),
    ],
)
def test_training_starts_from_a_checkpoint_of_any_task(
    golden: Golden, tmp_path: Path, case: str, kind: str, fresh: set[str]
) -> None:
    state = recorded_state(golden, case)
    size = 2 * golden(case)[1]["config"]["image_res"]
    model = model_for(golden, case, image_size=size)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = initialise(model, str(write_pth(tmp_path / "x.pth", state)))
    check_accounted(report, set(state), set(before))
    assert report.kind == kind and not report.wrong_shape and not report.unknown
    assert {name.partition(".")[0] for name in report.missing} == fresh
    assert all(".cls." in name for name in report.missing if name.startswith("text_encoder."))
    after = model.state_dict()
    for name, source in (report.sources() | dict.fromkeys(report.missing)).items():
        expected = before[name] if source is None else state[source]
        if name in report.resized:
            expected = resize_position_embeddings(expected, model.visual_encoder.grid_size)
        assert torch.equal(after[name], expected), name
    assert set(report.resized) == {"visual_encoder.pos_embed"}


def test_the_first_of_each_pair_of_layers_is_taken(golden: Golden, tmp_path: Path) -> None:
    state = recorded_state(golden, "nlvr")
    model = model_for(golden, "nlvr")
    report = initialise(model, str(write_pth(tmp_path / "nlvr.pth", state)))
    for ours, theirs in ((5, 5), (6, 6), (7, 8), (11, 16)):
        name = "encoder.layer.{}.output.dense.weight"
        assert report.remapped[f"text_encoder.bert.{name.format(ours)}"] == f"text_encoder.{name.format(theirs)}"
    twins = {name for name, why in report.unused.items() if why == TWIN_LAYER}
    assert {int(name.split(".")[3]) for name in twins} == {7, 9, 11, 13, 15, 17}


# --- what does not fit is an error that lists the keys -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("itm_head.weight"), r"1 missing \(itm_head.weight\)"),
        (lambda s: [s.pop(n) for n in [*s] if ".crossattention." in n], r"20 missing \(text_encoder.*and 14 more\)"),
        (
            lambda s: s.update({"visual_encoder.blocks.2.norm1.bias": torch.zeros(32)}),
            r"1 unknown \(visual_.*norm1.bias\)",
        ),
        (lambda s: s.update({"visual_encoder.pos_embed": torch.zeros(1, 9, 32)}), r"pos_embed is \(1, 9, 32\) there"),
    ],
    ids=["part", "layers", "unknown", "no square"],
)
def test_needed_keys_must_be_there(golden: Golden, tmp_path: Path, change: Any, expected: str) -> None:
    state = recorded_state(golden, "pretrain")
    change(state)
    with pytest.raises(CheckpointError, match=expected):
        initialise(model_for(golden, "pretrain"), str(write_pth(tmp_path / "x.pth", state)))


def test_vocabularies_must_agree(golden: Golden, tmp_path: Path) -> None:
    path = str(write_pth(tmp_path / "x.pth", recorded_state(golden, "pretrain")))
    model = model_for(golden, "pretrain")
    initialise(model, path, tokenizer=CaptionTokenizer.load(GOLDEN / "vocab.txt"))
    words = (GOLDEN / "vocab.txt").read_text().split("\n")
    (tmp_path / "other.txt").write_text("\n".join([*words[:-3], words[-2], words[-3], ""]))
    with pytest.raises(ConfigError, match=r"another vocabulary: 200 words there, 200 here, but not the same"):
        initialise(model, path, tokenizer=CaptionTokenizer.load(tmp_path / "other.txt"))
    bigger = TCL.from_config(model.config, 300)
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight is \(200, 32\) there, \(300, 32\) here"):
        initialise(bigger, path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nothing.pth", "nothing.pth: no such weights"),
        ("./nothing", "no such weights"),
        ("someone/their-model", "neither a file or folder here nor a model that could be fetched"),
        ("empty.pth", "empty.pth: "),
        ("cut.pth", "cut.pth: "),
        ("cut.safetensors", "cut.safetensors: not a safetensors file"),
        ("other.pth", "holds neither a TCL or ALBEF model, nor a ViT or BERT encoder"),
        ("numbers.pth", "holds neither a TCL or ALBEF model"),
        ("keys.pth", "holds neither a TCL or ALBEF model"),
        ("empty", "holds no model"),
        ("bundle", "an exported bundle holds no weights"),
        ("broken", "config.json: cannot be read"),
        ("half", "model.safetensors: cannot be read"),
        ("timm:no_such_vit", "timm cannot load these weights"),
    ],
)
def test_sources_that_are_none(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pth").touch()
    write_pth(tmp_path / "whole.pth", {"a": torch.zeros(99)})
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-200])
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    shutil.copy("whole.pth", "other.pth")
    torch.save([1, 2], "numbers.pth")
    torch.save({"model": {1: torch.zeros(2), "temp": 3}}, "keys.pth")
    for name, config in (
        ("empty", None),
        ("bundle", None),
        ("broken", "{"),
        ("half", '{"model": {}, "vocab_size": 9}'),
    ):
        Path(name).mkdir()
        if config:
            Path(name, "config.json").write_text(config)
    Path("bundle/bundle.json").write_text("{}")
    with pytest.raises((UsageError, CheckpointError), match=expected):
        open_weights(source)


# --- own models and the encoders of libraries --------------------------------------------------------------------


def test_training_starts_from_an_own_model_at_another_size(tiny_model: TCL, tiny_model_folder: Path) -> None:
    model = TCL.from_config(tiny_model.config.model_copy(update={"image_size": 48}), tiny_vocabulary(tiny_model))
    report = initialise(model, str(tiny_model_folder), tokenizer=tiny_model.processor.tokenizer)
    assert set(report.resized) == {"visual_encoder.pos_embed"} and not report.missing
    assert torch.equal(model.temp, tiny_model.temp)
    with pytest.raises(ConfigError, match="another vocabulary"):
        initialise(model, str(tiny_model_folder), tokenizer=CaptionTokenizer.load(GOLDEN / "vocab.txt"))
    arguments = tiny_model.config.image_encoder_args | {"num_heads": 2}
    narrow = tiny_model.config.model_copy(update={"image_encoder_args": arguments})
    with pytest.raises(ConfigError, match="trained with 4 attention heads, the recipe has 2") as error:
        initialise(TCL.from_config(narrow, tiny_vocabulary(tiny_model)), str(tiny_model_folder))
    assert error.value.hint == "set model.image_encoder_args.num_heads=4"


def bert_state(model: TCL, prefix: str, head: bool, old_names: bool) -> dict[str, Tensor]:
    """A BERT as libraries save it: no cross-attention, a pooler, perhaps an MLM head, a prefix, the first names."""
    state = {}
    for name, tensor in model.text_encoder.state_dict().items():
        if ".crossattention." in name or (name.startswith("cls.") and not head):
            continue
        if old_names:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[name.replace("bert.", prefix, 1)] = tensor.clone()
    if head:
        state["cls.predictions.decoder.weight"] = state[f"{prefix}embeddings.word_embeddings.weight"].clone()
        state["cls.seq_relationship.bias"] = torch.zeros(2)
    return state | {f"{prefix}pooler.dense.bias": torch.zeros(3), f"{prefix}embeddings.position_ids": torch.zeros(1, 4)}


@pytest.mark.parametrize(
    ("prefix", "head", "old_names", "file"),
    [
        ("bert.", True, True, "model.safetensors"),
        ("", False, False, "model.safetensors"),
        ("bert.", True, False, "pytorch_model.bin"),
    ],
)
def test_a_bert_fills_text_and_fusion_encoder(
    tiny_model: TCL, tmp_path: Path, prefix: str, head: bool, old_names: bool, file: str
) -> None:
    state = bert_state(tiny_model, prefix, head, old_names)
    (save_file if file.endswith("safetensors") else torch.save)(state, tmp_path / file)
    config = {"model_type": "bert", "num_attention_heads": 4, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = make_like(tiny_model)
    report = initialise(model, str(tmp_path))
    check_accounted(report, set(state), set(model.state_dict()))
    for name, tensor in model.state_dict().items():
        from_bert = (
            name.startswith("text_encoder.") and ".crossattention." not in name and (head or ".cls." not in name)
        )
        assert (name not in report.missing) == from_bert, name
        assert not from_bert or torch.equal(tensor, tiny_model.state_dict()[name]), name
    assert initialise(make_like(tiny_model), str(tmp_path / file)).counts() == report.counts()

    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 8}))
    with pytest.raises(ConfigError, match="trained with 8 attention heads, the recipe has 4"):
        initialise(make_like(tiny_model), str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    with pytest.raises(CheckpointError, match="its model_type is roberta, that of the text encoder is bert"):
        initialise(make_like(tiny_model), str(tmp_path))


def test_a_vit_by_name_or_file_fills_the_image_encoder(
    tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tiny_model.config.image_encoder_args
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, **arguments)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    model = make_like(tiny_model)
    report = initialise(model, str(tmp_path / "vit.safetensors"))
    check_accounted(report, set(vit.state_dict()), set(model.state_dict()))
    assert report.resized["visual_encoder.pos_embed"].theirs == (1, 65, 32)
    assert set(report.unused) == {"head.weight", "head.bias"}
    assert torch.equal(model.visual_encoder.blocks[1].mlp.fc2.weight, vit.blocks[1].mlp.fc2.weight)
    assert not any(name.startswith("visual_encoder.") for name in report.missing)

    vit.reset_classifier(0)
    by_name = make_like(tiny_model)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: vit)
    assert initialise(by_name, "timm:vit_tiny_patch16_224").counts() == report.counts() | {"unused": 0}
    assert torch.equal(by_name.visual_encoder.pos_embed, model.visual_encoder.pos_embed)


def test_both_encoders_of_a_recipe_are_one_report(
    tiny_model: TCL, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(bert_state(tiny_model, "bert.", True, False), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    CaptionTokenizer.train(CAPTIONS, 300).save(tmp_path)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **tiny_model.config.image_encoder_args)
    config = tiny_model.config.model_copy(update={"text_encoder": str(tmp_path)})
    model = TCL.from_config(config, tiny_vocabulary(tiny_model))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: vit)
    report = load_pretrained_encoders(model, tiny_model.processor.tokenizer)
    theirs = {*vit.state_dict(), *load_file(tmp_path / "model.safetensors")}
    check_accounted(report, theirs, set(model.state_dict()))
    fresh = {name for name in model.state_dict() if ".crossattention." in name} | {
        "temp", "vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias", "itm_head.weight",
        "itm_head.bias",
    }  # fmt: skip
    assert set(report.missing) == fresh
    assert "text_encoder.* (20 keys of cross-attention)" in "\n".join(report.lines())
    with pytest.raises(ConfigError, match="another vocabulary"):
        load_pretrained_encoders(model, CaptionTokenizer.load(GOLDEN / "vocab.txt"))
    model.config = config.model_copy(update={"text_encoder": str(tiny_model_folder)})
    with pytest.raises(ConfigError, match=r"model.text_encoder: .* holds no BERT"):
        load_pretrained_encoders(model)
