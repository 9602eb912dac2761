"""`tcl recipes` and `tcl scenes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tcl.config.files import shipped_recipes
from tcl.data.labels.regions import read_regions
from tcl.data.labels.statements import label_set, read_statements
from tcl.data.pairs.table import read_pairs
from tcl_cli.main import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ls_names_every_recipe_and_what_it_is_for(capsys: Capture) -> None:
    assert run(["recipes", "ls"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == list(shipped_recipes())
    assert "demo" in shipped_recipes()
    assert all(row[2] and "\\" not in row[2] for row in rows)
    commands = {row[0]: row[2] for row in rows if row[2].startswith("torchrun")}
    assert {"tcl-4m", "tcl-14m"} <= set(commands)
    assert all("--nproc-per-node" in command and command.endswith("--images /data") for command in commands.values())
    assert run(["recipes", "ls", "--json"]) == 0
    assert {recipe["name"] for recipe in json.loads(capsys.readouterr().out)["recipes"]} == set(shipped_recipes())


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str, capsys: Capture) -> None:
    assert run(["recipes", "validate", name]) == 0
    assert capsys.readouterr().out == f"{name}: valid\n"


def test_show(capsys: Capture) -> None:
    assert run(["recipes", "show", "demo"]) == 0
    assert capsys.readouterr().out.startswith("# tcl pretrain")
    assert run(["recipes", "show", "demo", "--resolved", "optim.lr=0.5"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["optim"]["lr"] == 0.5 and resolved["loss"]["alpha"] == 0.4
    assert run(["recipes", "show", "demo", "--keys"]) == 0
    assert any(line.startswith("optim.weight_decay\t") for line in capsys.readouterr().out.splitlines())


def test_cp(capsys: Capture) -> None:
    assert run(["recipes", "cp", "demo", "deep/mine"]) == 0
    assert capsys.readouterr().out == "deep/mine.yaml\n"
    assert run(["recipes", "validate", "deep/mine.yaml"]) == 0
    assert run(["recipes", "cp", "demo", "deep/mine"]) == 2
    assert run(["recipes", "cp", "demo", "deep/mine.yaml/x"]) == 2
    assert run(["recipes", "cp", "demo", "deep"]) == 0
    assert Path("deep/demo.yaml").is_file()


def test_everything_wrong_is_said_at_once(capsys: Capture) -> None:
    Path("bad.yaml").write_text("optim: {lrr: 1, warmup_steps: x}\ndata: {batch_size: 0}\n")
    assert run(["recipes", "validate", "bad.yaml"]) == 2
    message = capsys.readouterr().err
    assert "3 wrong settings" in message
    assert "optim.lrr" in message and "did you mean optim.lr?" in message
    assert "optim.warmup_steps" in message and "data.batch_size" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demmo"], "did you mean 'demo'?"),
        (["demo", "optim.lr"], "is no setting"),
        (["demo", "optim.lr=-1"], "optim.lr"),
    ],
)
def test_bad_input(capsys: Capture, arguments: list[str], message: str) -> None:
    assert run(["recipes", "validate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_scenes(capsys: Capture) -> None:
    assert run(["scenes", "scenes:val:12", "--out", "pictures"]) == 0
    assert capsys.readouterr().out == "pictures\n"
    rows = [json.loads(line) for line in Path("pictures/captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"{number:02}.png" for number in range(12)]
    assert all(row["caption"] for row in rows)
    with Image.open("pictures/03.png") as image:
        assert image.mode == "RGB"


def test_scenes_with_labels_are_data_of_their_tasks(capsys: Capture) -> None:
    assert run(["scenes", "scenes:val:5", "--labels", "--out", "pictures"]) == 0
    assert "statements.jsonl" in capsys.readouterr().err
    statements = list(read_statements("entailment", ["pictures/statements.jsonl"]))
    assert len(list(read_statements("entailment", ["pictures/statements.jsonl#contrast=other"]))) == 10
    assert len(statements) == 20 and label_set("entailment", [str(row.label) for row in statements]) == [
        "false",
        "true",
    ]
    regions = list(read_regions(["pictures/regions.jsonl"]))
    assert len(regions) >= 5 and len(list(read_pairs(["pictures/regions.jsonl"]))) == len(regions)
    for image in (*(row.images[0] for row in statements), *(row.image for row in regions)):
        assert Path(image).is_file()


def test_scenes_bad_input(capsys: Capture) -> None:
    Path("there").mkdir()
    Path("file").touch()
    for arguments, message in [
        (["scenes:val:0"], "not a set of scenes"),
        (["--out", "there"], "there: exists"),
        (["scenes:val:1", "--out", "file/x"], "cannot be written"),
    ]:
        assert run(["scenes", *arguments]) == 2
        assert message in capsys.readouterr().err
