"""Model folders, published checkpoints, and finding the model that a command means."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tcl import TCL
from tcl.config.recipe import ModelConfig
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer
from tcl.errors import CheckpointError, ConfigError, UsageError
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.task_model import TaskModel
from tcl.models.vision import resize_position_embeddings
from tcl.training.checkpoint import load_state, save_checkpoint
from tcl.weights.files import hash_model
from tcl.weights.find import find_bundle, find_model
from tcl.weights.initialize import load_pretrained_encoders
from tcl.weights.load import load_model
from tests.conftest import CAPTIONS, TINY, make_tiny_model
from tests.published import rename_reference

# Published models have heads of 64, and that is how sizes are read off a checkpoint.
WIDE = TINY | {
    "image_encoder_args": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1},
    "text_encoder_args": TINY["text_encoder_args"] | {"hidden_size": 64, "num_attention_heads": 1},
}


def test_save_and_load_round_trip(tiny_model: TCL, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    loaded = TCL.from_pretrained(tmp_path / "model")
    assert not loaded.training and loaded.model_hash == tiny_model.model_hash
    ids, mask = loaded.processor.texts(CAPTIONS)
    torch.testing.assert_close(
        loaded.encode_text(ids, mask).text_feat, tiny_model.encode_text(ids, mask).text_feat, rtol=0, atol=0
    )
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocess.json", "tokenizer.json",
    ]  # fmt: skip
    config = (tmp_path / "model" / "config.json").read_text()
    assert json.loads(config)["format_version"] == 1 and '\n  "model_hash": ' in config  # for people too
    assert "    tcl embed images/ " in (tmp_path / "model" / "README.md").read_text()
    loaded.save_pretrained(tmp_path / "model")  # over a model is fine
    (tmp_path / "empty").mkdir()
    loaded.save_pretrained(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="no model folder"):
        loaded.save_pretrained(tmp_path / "other")


def test_a_head_and_what_is_not_trained_are_read_back(fresh_model: TCL, tmp_path: Path) -> None:
    model = attach_head(fresh_model, HeadConfig(task="entailment", labels=["no", "maybe", "yes"]))
    model.untrained = ("itm_head",)
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, TaskModel) and loaded.head == model.head and loaded.untrained == model.untrained
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_the_hash_is_of_everything_that_decides_a_vector(tiny_model: TCL, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "a")
    same = make_tiny_model()
    same.save_pretrained(tmp_path / "b")
    assert same.model_hash == tiny_model.model_hash
    other = make_tiny_model(seed=1)
    other.save_pretrained(tmp_path / "c")
    assert other.model_hash != tiny_model.model_hash
    hashes = [same.model_hash]
    same.vision_proj.weight.data = same.vision_proj.weight.data.reshape(32, 16)
    hashes.append(hash_model(same))
    same.processor = Processor(same.processor.tokenizer, (32, 32), 7)
    hashes.append(hash_model(same))
    same.processor = Processor(CaptionTokenizer.train(CAPTIONS[:2], 60), (32, 32), 7)
    hashes.append(hash_model(same))
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", Path.unlink),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-50])),
        ("train_state.pt", Path.unlink),
        ("train_state.pt", lambda path: path.write_bytes(b"")),
        ("train_state.pt", lambda path: path.write_bytes(path.read_bytes()[:-50])),
        ("meta.json", lambda path: path.write_text("{")),
    ],
)
def test_a_damaged_checkpoint_is_named(tiny_model: TCL, tmp_path: Path, name: str, damage: Any) -> None:
    folder = save_checkpoint(tmp_path, tiny_model, {"teacher": {"x": torch.ones(300)}}, {"step": 3})
    weights, state, meta = load_state(folder)
    assert weights.keys() == tiny_model.state_dict().keys() and meta == {"step": 3}
    assert torch.equal(state["teacher"]["x"], torch.ones(300)) and '\n  "step": 3' in (folder / "meta.json").read_text()
    damage(folder / name)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_state(folder)
    if name != "meta.json" and (folder / name).exists():
        assert caught.value.hint == "delete this checkpoint folder to resume from the one before it"


@pytest.mark.parametrize("error", [OSError("full"), SafetensorError("full"), RuntimeError("full")], ids=repr)
def test_a_checkpoint_is_whole_or_absent(
    tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="cannot be written: full; earlier checkpoints are intact"):
        save_checkpoint(tmp_path, tiny_model, {}, {"step": 3})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_hub_model_is_fetched_without_what_it_does_not_need(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tiny_model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_model("someone/their-model").model_hash
    assert asked == [("someone/their-model", ["model.safetensors", "config.json", "tokenizer.json", "preprocess.json"])]


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("config.json", lambda path: path.write_text("{"), r"config.json: cannot be read"),
        ("config.json", lambda path: path.write_text('{"vocab_size": 5}'), r"config.json: lacks 'model'"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-50]),
            r"model.safetensors: cut off",
        ),
        ("model.safetensors", Path.unlink, r"model.safetensors: cannot be read"),
        ("preprocess.json", Path.unlink, r"preprocess.json: "),
        ("tokenizer.json", lambda path: path.write_text("{}"), r"tokenizer.json"),
    ],
)
def test_damaged_model_folders(tiny_model_folder: Path, tmp_path: Path, name: str, damage: Any, expected: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    damage(folder / name)
    with pytest.raises((CheckpointError, UsageError), match=expected):
        load_model(folder)


def test_weights_that_do_not_fit_the_configuration(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["vision_proj.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit config.json: .*vision_proj.bias"):
        load_model(folder)


def test_a_vocabulary_larger_than_the_models(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    CaptionTokenizer.train([f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"], 2000).save(
        folder
    )
    with pytest.raises(CheckpointError, match=r"tokenizer.json: its vocabulary has \d+ words, the model \d+"):
        load_model(folder)


def reference_checkpoint(path: Path, bare: bool = False) -> TCL:
    """A `.pth` as the published code writes it: everything under "model", with teacher, queues and tied copies."""
    model = make_tiny_model(**WIDE)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor
        if "." in name:  # all but the temperature
            state[name.replace(".", "_m.", 1)] = tensor * 0.5
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(40)[None]
    state["text_encoder.cls.predictions.decoder.weight"] = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    state["text_encoder.cls.predictions.decoder.bias"] = state["text_encoder.cls.predictions.bias"]
    state |= {"image_queue": torch.zeros(16, 8), "text_queue": torch.zeros(16, 8), "queue_ptr": torch.zeros(1)}
    if bare:  # retrieval: no MLM head, no `bert.`
        state = {n.replace("encoder.bert.", "encoder."): t for n, t in state.items() if ".cls.predictions" not in n}
        state["idx_queue"] = torch.full((1, 8), -100)
    torch.save({"model": state, "optimizer": {}, "epoch": 29, "config": {"image_res": 32}}, path)
    model.processor.tokenizer.save(path.parent)
    return model


@pytest.mark.parametrize("bare", [False, True], ids=["pre-training", "retrieval"])
def test_published_checkpoints_load(tmp_path: Path, bare: bool) -> None:
    expected = reference_checkpoint(tmp_path / "TCL_4M.pth", bare)
    model = TCL.from_pretrained(tmp_path / "TCL_4M.pth")
    assert model.config.fusion_layer == 2 and model.config.image_size == 32
    for name, tensor in expected.state_dict().items():
        if not (bare and name.startswith("text_encoder.cls.")):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert TCL.from_pretrained(tmp_path / "TCL_4M.pth").model_hash  # it has an identity


def test_the_published_key_remapping(golden: Any) -> None:
    """Names as the published retrieval script leaves them, without `bert.`, and what is dropped."""
    renamed = golden("remap")[1]["scripts"]["Retrieval"]["renamed"]
    compared = 0
    for target, source in renamed.items():
        dropped = not rename_reference({target: torch.zeros(1)}) or ".cls." in target or source.startswith("interp")
        if not dropped:
            ours, theirs = (rename_reference({name: torch.zeros(1)}) for name in (target, source))
            assert ours.keys() == theirs.keys() != set(), target
            compared += 1
    assert compared > 200
    state = {"text_encoder.encoder.layer.0.x": torch.zeros(1), "visual_encoder.norm.bias": torch.zeros(1)}
    assert set(rename_reference(state)) == {"text_encoder.bert.encoder.layer.0.x", "visual_encoder.norm.bias"}
    for name in ("vision_proj_m.weight", "queue_ptr", "text_encoder_m.bert.x", "text_encoder.embeddings.position_ids"):
        assert rename_reference({name: torch.zeros(1)}) == {}


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for name, write in (
        ("torch.pth", lambda path: torch.save({"model": Payload(marker)}, path)),
        ("plain.pth", lambda path: path.write_bytes(pickle.dumps(Payload(marker)))),
    ):
        write(tmp_path / name)
        with pytest.raises(CheckpointError, match="refused"):
            load_model(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("itm_head.weight"), r"1 missing \(itm_head.weight\)"),
        (lambda s: s.update({"text_decoder.x": torch.zeros(1)}), r"1 unknown \(text_decoder.x\)"),
        (lambda s: s.pop("text_encoder.bert.embeddings.word_embeddings.weight"), r"word_embeddings.weight is missing"),
        (lambda s: s.pop("visual_encoder.pos_embed"), r"holds no TCL or ALBEF model"),
    ],
)
def test_checkpoints_that_do_not_fit_say_which_keys(tmp_path: Path, change: Any, expected: str) -> None:
    path = tmp_path / "x.pth"
    reference_checkpoint(path)
    content = torch.load(path, weights_only=True)
    change(content["model"])
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=expected):
        load_model(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError):
        load_model(path)


def test_pretrained_encoders_are_loaded_and_resampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formats are the real ones, written locally: a timm ViT at its own size, a BERT folder of transformers."""
    tokenizer = CaptionTokenizer.train(CAPTIONS, 300)
    text = WIDE["text_encoder_args"]
    sizes = {key: text[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=40, **sizes)
    )
    bert.save_pretrained(tmp_path / "bert")
    vit_arguments = WIDE["image_encoder_args"]
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **vit_arguments)
    create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        return vit if pretrained else create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", create_model)
    config = ModelConfig.model_validate(WIDE | {"text_encoder": str(tmp_path / "bert"), "pretrained": True})
    model = TCL.from_config(config, tokenizer.vocab_size)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_pretrained_encoders(model)
    after, theirs = model.state_dict(), bert.state_dict()
    expected = resize_position_embeddings(vit.pos_embed, (4, 4))
    assert torch.equal(after["visual_encoder.pos_embed"], expected)
    assert torch.equal(after["visual_encoder.blocks.1.mlp.fc1.weight"], vit.state_dict()["blocks.1.mlp.fc1.weight"])
    for name in after:
        if name.startswith("text_encoder."):
            own = fresh[name] if ".crossattention." in name else theirs[name.removeprefix("text_encoder.")]
            assert torch.equal(after[name], own), name

    with pytest.raises(ConfigError, match=r"word_embeddings.weight is \(\d+, 64\) there, \(99, 64\) here"):
        load_pretrained_encoders(TCL.from_config(config, 99))
    missing = config.model_copy(update={"text_encoder": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match=r"model.text_encoder: the weights of .*nowhere"):
        load_pretrained_encoders(TCL.from_config(missing, tokenizer.vocab_size))


def test_which_model_is_meant(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no model") as error:
        find_model()
    assert "tcl pretrain" in str(error.value.hint) and "--model" in str(error.value.hint)
    for age, name in ((30, "old"), (10, "new")):
        shutil.copytree(tiny_model_folder, f"runs/{name}/model")
        stamp = 1_700_000_000 - age
        os.utime(f"runs/{name}/model/config.json", (stamp, stamp))
    Path("runs/unfinished/checkpoints").mkdir(parents=True)
    Path("runs/latest").symlink_to("unfinished")
    assert find_model().path == Path("runs/new/model") and find_model().name == "new"
    monkeypatch.setenv("TCL_MODEL", "runs/old")
    assert find_model().name == "old" and find_model("runs/new").name == "new"
    monkeypatch.delenv("TCL_MODEL")
    with pytest.raises(UsageError, match="has not finished") as error:
        find_model("runs/latest")
    assert "--resume" in str(error.value.hint)
    with pytest.raises(UsageError, match="no such model"):
        find_model("runs/nothing")
    with pytest.raises(UsageError, match="not a model"):
        find_model("runs/new/model/config.json")
    assert find_model("someone/their-model").kind == "hub"
    with pytest.raises(UsageError, match="could be fetched from the hub"):
        load_model("someone/their-model")
    with pytest.raises(UsageError, match="no exported bundle"):
        find_bundle()
    with pytest.raises(UsageError, match="is no exported bundle"):
        find_bundle("runs/new")
    for name in ("a", "b"):
        Path(f"exports/{name}").mkdir(parents=True)
        Path(f"exports/{name}/bundle.json").write_text(json.dumps({}))
    os.utime("exports/a/bundle.json", (2_000_000_000, 2_000_000_000))
    assert find_bundle().path == Path("exports/a") and find_model("exports/b").kind == "bundle"
