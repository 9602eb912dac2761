"""`tcl inspect` and `tcl convert`: what a model is, and the published format there and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import GOLDEN, make_tiny_model

PRETRAINING_KEYS = 268


@pytest.fixture
def published(golden: Callable[[str], Any], workplace: Path) -> Path:
    """`TCL_4M.pth` in the working directory, tiny, with its vocabulary."""
    tensors = golden("pretrain")[0]
    state = {name.removeprefix("state/"): value for name, value in tensors.items() if name.startswith("state/")}
    torch.save({"model": state, "optimizer": {}, "epoch": 29}, "TCL_4M.pth")
    shutil.copy(GOLDEN / "vocab.txt", "vocab.txt")
    return Path("TCL_4M.pth")


def test_inspect_a_model_folder(tcl: Any, workplace: Path) -> None:
    model = make_tiny_model()
    result = tcl("inspect", "runs/tiny/model")
    assert result.code == 0 and result.stderr == ""
    facts = dict(line.split("\t") for line in result.stdout.splitlines() if "\t" in line)
    assert facts["kind"] == "model folder" and facts["hash"] == model.model_hash
    assert facts["image size"] == "32" and facts["text layers"] == facts["fusion layers"] == "2"
    assert facts["temperature"] == f"{model.temp.item():.4g}"
    assert facts["parameters, total"] == f"{sum(p.numel() for p in model.parameters()):,}"
    values = json.loads(tcl("inspect", "--json").stdout)  # the newest run
    assert values["kind"] == "model folder" and values["problem"] is None
    parts = values["parameters"]
    assert parts.pop("total") == sum(parts.values())
    assert set(parts) == {
        "image_encoder", "text_encoder", "fusion_encoder", "mlm_head", "projections", "itm_head", "temp",
    }  # fmt: skip
    assert len(values["keys"]["loaded"]) == len(model.state_dict())


def test_inspect_a_published_checkpoint(tcl: Any, published: Path) -> None:
    result = tcl("inspect", str(published))
    assert result.code == 0
    assert "kind\tpublished checkpoint (pre-training)" in result.stdout
    assert "beside the model\toptimizer, epoch" in result.stdout
    queues = next(line for line in result.stdout.splitlines() if "unused, a feature queue; " in line)
    assert all(name in queues for name in ("image_queue", "text_queue", "queue_ptr"))
    rows = [line.split("\t") for line in tcl("inspect", str(published), "--keys").stdout.splitlines()]
    rows = rows[rows.index(["class", "key", "note"]) + 1 :]
    assert len(rows) == PRETRAINING_KEYS == len({row[1] for row in rows})
    assert ["unused", "text_encoder.bert.embeddings.position_ids", "a constant"] in rows


def test_inspect_names_what_is_wrong_after_the_report(tcl: Any, workplace: Path) -> None:
    path = Path("runs/tiny/model/model.safetensors")
    weights = load_file(path)
    del weights["itm_head.weight"]
    save_file(weights, path)
    result = tcl("inspect", "runs/tiny/model", "--json")
    assert result.code == 1 and "1 missing (itm_head.weight)" in result.stderr
    assert json.loads(result.stdout)["keys"]["missing"] == {"itm_head.weight": [2, 32]}


def test_inspect_a_run_before_and_after_it_finishes(tcl: Any, workplace: Path) -> None:
    run = Path("runs/half")
    checkpoint = run / "checkpoints" / "step-00000007"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"optim": {"lr": 0.001}, "train": {"epochs": 3}}))
    facts = json.loads(tcl("inspect", str(run), "--json").stdout)
    assert facts["kind"] == "run" and facts["training"]["checkpoints"] == [] and facts["keys"] is None
    shutil.copytree("runs/tiny/model", checkpoint)
    (checkpoint / "meta.json").write_text('{"step": 7, "epoch": 0.5, "recipe": {"optim": {"lr": 0.001}}}')
    (run / "metrics.jsonl").write_text('{"step": 5, "loss": 2.5}\n{"step": 5, "val_r1": 40.0}\n{"step": 6, "lo')
    training = json.loads(tcl("inspect", str(run), "--json").stdout)["training"]
    assert training["finished"] is False and training["step"] == 7 and training["optim.lr"] == 0.001
    assert training["last"] == {"step": 5, "loss": 2.5, "val_r1": 40.0}
    shutil.copytree("runs/tiny/model", run / "model")
    result = tcl("inspect", str(run))
    assert result.code == 0 and "finished\tTrue" in result.stdout
    assert json.loads(tcl("inspect", str(checkpoint), "--json").stdout)["kind"] == "checkpoint"


def test_inspect_a_bundle(tcl: Any, workplace: Path) -> None:
    Path("bundle").mkdir()
    manifest = {"model_hash": "abc", "precisions": ["fp32"], "verified": True, "files": {"a.onnx": "1f"}}
    Path("bundle/bundle.json").write_text(json.dumps(manifest))
    values = json.loads(tcl("inspect", "bundle", "--json").stdout)
    assert values["kind"] == "bundle" and values["model_hash"] == "abc" and values["bundle"]["verified"] is True
    Path("bundle/bundle.json").write_text("{")
    result = tcl("inspect", "bundle")
    assert result.code == 1 and "bundle.json: cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("argument", "code", "expected"),
    [
        ("nothing.pth", 2, "nothing.pth: no such model"),
        ("images", 2, "images: holds no model"),
        ("images/1.png", 2, "images/1.png: not a model"),
        ("someone/their-model", 2, "could be fetched from the hub"),
        ("empty.pth", 1, "empty.pth: "),
        ("bert", 1, "describes no TCL model"),
        ("runs/broken", 2, "config.yaml: cannot be read"),
    ],
)
def test_inspect_something_else(tcl: Any, workplace: Path, argument: str, code: int, expected: str) -> None:
    Path("empty.pth").touch()
    Path("bert").mkdir()
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    Path("runs/broken").mkdir()
    Path("runs/broken/config.yaml").write_text("{")
    result = tcl("inspect", argument)
    assert result.code == code and expected in result.stderr and result.stdout == ""
    assert "Traceback" not in result.stderr


def test_convert_there_and_back(tcl: Any, published: Path) -> None:
    result = tcl("convert", str(published), "model")
    assert result.code == 0 and result.stdout == "model\n" and "(pre-training): " in result.stderr
    assert tcl("inspect", "model").code == 0
    values = json.loads(tcl("convert", "model", "back.pth", "--json").stdout)
    assert values["out"] == "back.pth" and values["keys"]["teacher"] is True
    before, after = (torch.load(path, weights_only=True)["model"] for path in (published, "back.pth"))
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_convert_a_run_to_the_published_format(tcl: Any, workplace: Path) -> None:
    result = tcl("convert", "runs/tiny", "tiny.pth")
    assert result.code == 0 and "without teacher and queues" in result.stderr
    tensors = torch.load("tiny.pth", weights_only=True)["model"]
    assert torch.equal(tensors["itm_head.weight"], make_tiny_model().itm_head.weight)


def test_convert_with_a_vocabulary_from_elsewhere(tcl: Any, published: Path) -> None:
    Path("vocab.txt").rename("words.txt")
    assert tcl("convert", str(published), "model", "--tokenizer", "words.txt").code == 0
    assert Path("model/tokenizer.json").is_file()
    Path("words.txt").write_text(Path("words.txt").read_text() + "more\nwords\n")
    result = tcl("convert", str(published), "other", "--tokenizer", "words.txt")
    assert result.code == 1 and "its vocabulary has 200 words, the tokenizer 202" in result.stderr
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["TCL_4M.pth", "out.pth"], 2, "TCL_4M.pth is in the published format already"),
        (["runs/tiny", "out"], 2, "runs/tiny is a model folder already"),
        (["TCL_4M.pth", "runs/tiny"], 2, "runs/tiny: exists"),
        (["runs/tiny", "TCL_4M.pth"], 2, "TCL_4M.pth: exists"),
        (["runs/tiny", "out.pth", "--tokenizer", "vocab.txt"], 2, "--tokenizer is for a published .pth"),
        (["TCL_4M.pth", "out", "--tokenizer", "no.txt"], 2, "no.txt"),
        (["nothing.pth", "out"], 2, "nothing.pth: no such model"),
        (["cut.pth", "out"], 1, "cut.pth: "),
        (["vqa.pth", "out"], 1, "a checkpoint of VQA, which lacks parts of the model"),
        (["bundle", "out"], 2, "an exported bundle holds no weights"),
    ],
)
def test_convert_what_cannot_be(
    tcl: Any, published: Path, golden: Any, arguments: list[str], code: int, expected: str
) -> None:
    Path("cut.pth").write_bytes(published.read_bytes()[:-500])
    vqa = golden("vqa")[0]
    torch.save({name.removeprefix("state/"): t for name, t in vqa.items() if name.startswith("state/")}, "vqa.pth")
    Path("bundle").mkdir()
    Path("bundle/bundle.json").write_text("{}")
    result = tcl("convert", *arguments)
    assert result.code == code and expected in result.stderr and "Traceback" not in result.stderr
    assert not Path("out").exists() and not Path("out.pth").exists()
