"""What needs a part that nothing has trained refuses the model in one line, until a training has made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcl.weights.untrained import read_untrained
from tests.conftest import TINY
from tests.tasks.finetuning import question, statement, write_rows
from tests.tcl_cli.test_eval_published import LABELS, published

QUICK = ("train.steps=2", "data.workers=0", "data.batch_size=3")
PROJECTIONS = "no trained image projection (vision_proj) or text projection (text_proj)"
MATCHING = "no trained matching head (itm_head)"
WITHOUT = ["vision_proj", "text_proj", "itm_head", "text_encoder.cls"]


def untrained(folder: str) -> list[str]:
    return list(json.loads(Path(folder, "config.json").read_text())["untrained"])


@pytest.fixture
def converted(workplace: Path, tcl: Any) -> Path:
    """`ve`, made of a published checkpoint of entailment."""
    published("entailment")
    assert tcl("convert", "entailment.pth", "ve").code == 0
    return workplace


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["embed", "images", "--out", "new.npy"], PROJECTIONS),
        (["search", "a dog", "--index", "vecs.npy"], PROJECTIONS),
        (["eval", "retrieval", "--data", "scenes:val:3"], PROJECTIONS),
        (["eval", "retrieval", "--data", "scenes:val:3", "--k", "0"], PROJECTIONS),
        (["eval", "classification", "--data", "classes"], PROJECTIONS),
        (["eval", "grounding", "--data", "scenes:val:3"], MATCHING),
        (["explain", "images/1.png", "a dog", "--out", "dog.png"], MATCHING),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_converted_model_of_a_task_is_for_its_task(
    converted: Path, tcl: Any, command: list[str], missing: str
) -> None:
    assert tcl("embed", "images", "--out", "vecs.npy", "--model", "runs/tiny").code == 0
    for name in ("circle", "square"):
        Path("classes", name).mkdir(parents=True)
        Path("classes", name, "1.png").write_bytes(Path("images/1.png").read_bytes())
    before = sorted(Path().iterdir())
    result = tcl(*command, "--model", "ve")
    assert result.code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 2, result.stderr
    assert result.stderr.startswith("Error: ve gives no ") and missing in result.stderr
    assert "tcl finetune retrieval --model MODEL" in result.stderr
    assert sorted(Path().iterdir()) == before


def test_its_head_is_exported_and_its_bundle_gives_no_vectors(converted: Path, tcl: Any) -> None:
    result = tcl("export", "--model", "ve", "--out", "bundle")
    assert result.code == 0, result.stderr
    assert "no trained image projection" in result.stderr and "tcl embed" not in result.stderr
    manifest = json.loads(Path("bundle/bundle.json").read_text())
    assert manifest["verified"] and manifest["untrained"] == WITHOUT
    assert "entailment" in manifest["graphs"] and "matcher" not in manifest["graphs"]
    assert "vectors mean nothing" in Path("bundle/README.md").read_text()
    result = tcl("embed", "images", "--out", "vecs.npy", "--model", "bundle")
    assert result.code == 2 and PROJECTIONS in result.stderr and not Path("vecs.npy").exists()


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa"])
def test_inspect_names_what_is_untrained(workplace: Path, tcl: Any, task: str) -> None:
    published(task)
    if task == "vqa":
        Path("answer_list.json").write_text(json.dumps(LABELS[task]))
    assert tcl("convert", f"{task}.pth", "converted").code == 0
    assert untrained("converted") == WITHOUT
    for model in (f"{task}.pth", "converted"):
        assert json.loads(tcl("inspect", model, "--json").stdout)["architecture"]["untrained"] == WITHOUT
    assert "untrained\tvision_proj, text_proj, " in tcl("inspect", "converted").stdout
    assert "gives no vectors" in Path("converted/README.md").read_text()
    assert "untrained" not in json.loads(tcl("inspect", "runs/tiny", "--json").stdout)["architecture"]


def test_training_for_vectors_makes_the_parts_and_training_for_a_task_does_not(converted: Path, tcl: Any) -> None:
    rows = [statement("entailment", number, ("yes", "no")[number % 2]) for number in range(4)]
    data = write_rows(converted / "rows.jsonl", rows)
    assert tcl("finetune", "entailment", "--model", "ve", "--data", data, *QUICK).code == 0
    assert untrained("runs/entailment/model") == untrained("runs/entailment/checkpoints/step-00000002") == WITHOUT
    result = tcl("embed", "images", "--out", "vecs.npy", "--model", "runs/entailment")
    assert result.code == 2 and PROJECTIONS in result.stderr
    done = tcl("finetune", "retrieval", "--model", "runs/entailment", "--data", "scenes:train:6", *QUICK)
    assert done.code == 0, done.stderr
    assert untrained("runs/retrieval/model") == ["text_encoder.cls"]
    assert tcl("embed", "images", "--out", "vecs.npy", "--model", "runs/retrieval").code == 0
    assert tcl("search", "a dog", "--index", "vecs.npy", "--model", "runs/retrieval", "--rerank", "2").code == 0


def test_a_task_learned_from_scratch_makes_no_vectors_either(workplace: Path, tcl: Any) -> None:
    data = write_rows(workplace / "questions.jsonl", [question(number) for number in range(5)])
    small = {"task": "vqa", "model": TINY, "train": {"steps": 2}, "data": {"workers": 0, "batch_size": 3}}
    Path("small.yaml").write_text(yaml.safe_dump(small))
    command = ("finetune", "vqa", "small.yaml", "--scratch", "--data", data, "--out", "runs/a", "--resume")
    for steps in (2, 3):
        assert tcl(*command, f"train.steps={steps}").code == 0
        assert untrained("runs/a/model") == WITHOUT
    result = tcl("embed", "images", "--out", "vecs.npy", "--model", "runs/a")
    assert result.code == 2 and PROJECTIONS in result.stderr
    kept = tcl("finetune", "vqa", "--model", "runs/tiny", "--data", data, *QUICK)
    assert kept.code == 0 and untrained("runs/vqa/model") == []


def test_a_folder_of_an_older_version_says_nothing() -> None:
    assert read_untrained({}) == read_untrained({"untrained": 3}) == ()
    assert read_untrained({"untrained": ["itm_head", "a part of a newer version"]}) == ("itm_head",)
