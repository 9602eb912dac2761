"""`tcl inspect` and `tcl convert`: what a model is, and the published format there and back."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tcl.errors import CheckpointError
from tcl.weights.sources import open_weights
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
    graph = {"inputs": [], "precisions": {"fp32": {"file": "a.onnx"}, "fp16": {"file": "b.onnx"}}}
    for graphs, row in (
        ({"image_encoder": graph, "text_encoder": graph}, "image_encoder fp32 fp16, text_encoder fp32 fp16"),
        ({"image_encoder": {"file": "a.onnx"}}, "image_encoder"),  # of the first format
    ):
        Path("bundle/bundle.json").write_text(json.dumps(manifest | {"graphs": graphs}))
        assert f"graphs\t{row}\n" in tcl("inspect", "bundle").stdout
        assert json.loads(tcl("inspect", "bundle", "--json").stdout)["bundle"]["graphs"] == graphs
    Path("bundle/bundle.json").write_text("{")
    result = tcl("inspect", "bundle")
    assert result.code == 1 and "bundle.json: cannot be read" in result.stderr


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_inspect_a_bundle_without_torch(tmp_path: Path, name: str) -> None:
    """The machine that a bundle is made for."""
    root = Path(__file__).parents[2]
    script = "import sys; sys.modules['torch'] = None; from tcl_cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "inspect", str(root / "tests" / "compat" / name), "--json"]
    environment = os.environ | {"PYTHONPATH": str(root), "TCL_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["kind"] == "bundle" and values["location"] == command[-2] and "fp32" in values["bundle"]["precisions"]


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
        (["vqa.pth", "out"], 2, "a vqa checkpoint holds no answers to choose from"),
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


def foreign(kind: str) -> bytes:
    """Content of files that people take for checkpoints."""
    whole, old = io.BytesIO(), io.BytesIO()
    torch.save({"model": {"a": torch.zeros(1000)}}, whole)
    torch.save({"model": {"a": torch.zeros(1000)}}, old, _use_new_zipfile_serialization=False)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "hello")
    return {
        "cut": whole.getvalue()[:-500],
        "short": whole.getvalue()[:100],
        "old": old.getvalue()[:-500],
        "old-short": old.getvalue()[:60],
        "empty": b"",
        "page": b"<!DOCTYPE html><html>not found</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "text": b"hello world\n",
        "zeros": bytes(5000),
        "archive": archive.getvalue(),
        "objects": pickle.dumps({"a": Path("x")}),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cut", "cut off after 5,"),
        ("short", "cut off after 100 bytes\n  -> download or copy it again"),
        ("old", "cut off or damaged"),
        ("old-short", "cut off or damaged"),
        ("empty", "the file is empty"),
        ("page", "a web page, not weights\n  -> download the file itself"),
        ("pointer", "a pointer of Git LFS, not the file itself\n  -> git lfs pull"),
        ("text", "not a file of weights that torch wrote"),
        ("zeros", "not a file of weights that torch wrote"),
        ("archive", "a ZIP archive that torch did not write"),
        ("objects", "refused: it is no plain checkpoint, and loading it could run code"),
    ],
)
def test_files_that_are_no_checkpoint(tcl: Any, workplace: Path, kind: str, expected: str) -> None:
    Path("x.pth").write_bytes(foreign(kind))
    for command in (["inspect", "x.pth"], ["convert", "x.pth", "out"]):
        result = tcl(*command)
        assert result.code == 1 and result.stdout == "" and not Path("out").exists()
        assert result.stderr.startswith(f"Error: x.pth: {expected}") and len(result.stderr.splitlines()) == 2
    with pytest.raises(CheckpointError, match=re.escape(f"x.pth: {expected.partition(chr(10))[0]}")):
        open_weights("x.pth")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda whole: whole[:-100], r"cut off: [\d,]+ of [\d,]+ bytes"),
        (lambda whole: whole[:5000], "cut off after 5,000 bytes"),
        (lambda whole: whole[:5], "cut off after 5 bytes"),
        (lambda whole: b"", "the file is empty"),
        (lambda whole: whole + b"more", "damaged"),
        (lambda whole: whole[:8] + b"x" + whole[9:], "not a safetensors file"),
        (lambda whole: b"<html>", "a web page, not weights"),
    ],
)
def test_safetensors_that_cannot_be_read(tcl: Any, workplace: Path, content: Any, expected: str) -> None:
    path = Path("runs/tiny/model/model.safetensors")
    path.write_bytes(content(path.read_bytes()))
    result = tcl("inspect", "runs/tiny")
    assert result.code == 1 and result.stdout == "" and len(result.stderr.splitlines()) == 2
    assert re.match(f"Error: {path}: {expected}\n", result.stderr)
    result = tcl("convert", "runs/tiny", "out.pth")
    assert result.code == 1 and re.match(f"Error: {path}: {expected}\n", result.stderr)
    for source in ("runs/tiny", str(path)):
        with pytest.raises(CheckpointError, match=f"^{path}: {expected}$"):
            open_weights(source)


def test_settings_of_a_model_that_are_wrong_are_said_plainly(tcl: Any, workplace: Path) -> None:
    path = Path("runs/tiny/model/config.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"model": values["model"] | {"image_size": 5, "colour": 1}}))
    result = tcl("inspect", "runs/tiny")
    assert result.code == 1 and "Value error" not in result.stderr and len(result.stderr.splitlines()) == 2
    assert "image_size: a side is 16 to 1024 pixels" in result.stderr and "colour: no such setting" in result.stderr
    with pytest.raises(CheckpointError, match=r"config\.json: image_size: a side is 16") as caught:
        open_weights("runs/tiny")
    assert "Value error" not in caught.value.message


def test_a_model_folder_whose_image_size_leaves_pixels_over_is_refused(tcl: Any, workplace: Path) -> None:
    folder = Path("runs/tiny/model")
    preprocess, config = (json.loads((folder / name).read_text()) for name in ("preprocess.json", "config.json"))
    (folder / "preprocess.json").write_text(json.dumps(preprocess | {"image_size": [36, 36]}))
    embed = ("embed", "images", "--out", "vecs.npy")
    other = tcl(*embed)
    assert (
        other.code == 1
        and "preprocess.json: its image_size [36, 36] is not that of config.json, [32, 32]" in other.stderr
    )
    (folder / "config.json").write_text(json.dumps(config | {"model": config["model"] | {"image_size": 36}}))
    over = tcl(*embed)
    assert (
        over.code == 1 and "config.json: " in over.stderr and "the last 4 would be ignored; use 32 or 40" in over.stderr
    )
    assert not Path("vecs.npy").exists()


def test_convert_warns_of_heads_that_the_format_cannot_say(tcl: Any, published: Path) -> None:
    result = tcl("convert", "runs/tiny", "tiny.pth")
    assert result.code == 0 and Path("tiny.pth").is_file()
    assert "Warning: a .pth does not say how many attention heads" in result.stderr
    assert "the image encoder's 4 become 1, the text encoder's 4 become 1" in result.stderr
    shutil.copy("runs/tiny/model/tokenizer.json", ".")
    assert tcl("convert", "tiny.pth", "other").code == 0
    again = tcl("convert", "other", "again.pth")
    assert again.code == 0 and "Warning" not in again.stderr


def test_convert_without_a_vocabulary_or_network_says_so_once(
    tcl: Any, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    Path("vocab.txt").unlink()
    result = tcl("convert", str(published), "out")
    assert result.code == 2 and not Path("out").exists()
    assert result.stderr == (
        "Error: TCL_4M.pth: there is no vocab.txt beside it, and bert-base-uncased cannot be fetched from the hub\n"
        "  -> put the vocab.txt of BERT there, or name it: tcl convert TCL_4M.pth OUT --tokenizer PATH\n"
    )
