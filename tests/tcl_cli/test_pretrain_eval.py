"""`tcl pretrain` and `tcl eval`, from the command line: the run that comes out, and every wrong input."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tcl.data.tokenizer import CaptionTokenizer
from tests.conftest import TINY

SETTINGS = {
    "model": TINY,
    "loss": {"queue_size": 13},
    "optim": {"lr": 1e-3, "warmup_steps": 2},
    "data": {"train": ["scenes:train:20"], "batch_size": 4, "workers": 0, "augment": "mild"},
    "train": {"steps": 4, "checkpoint_every": 2, "eval_every": 2, "log_every": 1},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny recipe in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    return "tiny.yaml"


def write_pairs(folder: Path, number: int = 6) -> Path:
    folder.mkdir()
    rows = []
    for row in range(number):
        Image.new("RGB", (40, 30), (40 * row, 200 - 30 * row, 99)).save(folder / f"{row}.png")
        rows.append(json.dumps({"image": f"{row}.png", "captions": [f"picture number {row}", f"the {row}th of them"]}))
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "pairs.jsonl"


def test_train_then_evaluate_with_no_argument_but_the_recipe(recipe: str, tcl: Any) -> None:
    result = tcl("pretrain", recipe, "--val", "scenes:val:8")
    assert result.code == 0, result.stderr
    assert result.stdout == ""
    run = Path("runs/tiny")
    assert (run / "model/model.safetensors").is_file() and Path("runs/latest").resolve() == run.resolve()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "val_t2i_r1" in line] == [2, 4]
    parts = {"cma_i2t", "cma_t2i", "imc_image", "imc_text", "lmi_image", "lmi_text", "itm", "mlm"}
    assert parts <= set(lines[0])
    assert "step      2  R@1/5/10 %  text to image " in result.stderr

    result = tcl("eval", "retrieval", "--data", "scenes:val:8", "--rerank", "4", "--json")
    assert result.code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["images"] == 8 and set(values["vectors"]) == set(values["reranked"])
    assert all(0 <= value <= 100 for value in values["reranked"].values())

    again = tcl("pretrain", recipe)
    assert again.code == 0 and Path("runs/tiny-2/model").is_dir()


def test_three_commands_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tcl: Any) -> None:
    """The README's first lines; only the training is cut short."""
    monkeypatch.chdir(tmp_path)
    short = ["train.steps=1", "data.workers=0", "data.train=[scenes:train:16]", "data.val=[]"]
    for command in (["pretrain", *short], ["embed", "images/", "--out", "vecs.npy"], ["export"]):
        result = tcl(*command)
        assert result.code == 0, result.stderr
    ids = Path("vecs.ids.jsonl").read_text().splitlines()
    assert np.load("vecs.npy").shape == (256, 64) and len(ids) == 256
    assert json.loads(Path("exports/demo/bundle.json").read_text())["verified"] is True


def test_own_pairs_and_overrides(recipe: str, tcl: Any, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data")
    result = tcl("pretrain", recipe, "--data", str(pairs), "train.steps=2", "model.max_length=8", "--out", "runs/own")
    assert result.code == 0, result.stderr
    resolved = yaml.safe_load(Path("runs/own/config.yaml").read_text())
    assert resolved["data"]["train"] == [str(pairs)] and resolved["train"]["steps"] == 2
    assert resolved["model"]["max_length"] == 8
    assert not Path("images").exists()  # those are for the demo


def test_images_inside_a_table_and_columns_of_any_name(recipe: str, tcl: Any, tmp_path: Path) -> None:
    images = [path.read_bytes() for path in sorted(write_pairs(tmp_path / "data").parent.glob("*.png"))]
    cells = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"Foto": cells, "Wort": [f"picture {row}" for row in range(6)]}), tmp_path / "rows.parquet")
    columns = ["data.image_column=foto", "data.text_column=Wort"]
    result = tcl("pretrain", recipe, "--data", "rows.parquet", "--val", "rows.parquet", *columns, "train.steps=2")
    assert result.code == 0, result.stderr
    assert not Path("runs/tiny/bad_samples.jsonl").exists()
    options = ["--image-column", "Foto", "--text-column", "wort", "--json"]
    values = json.loads(tcl("eval", "retrieval", "--data", "rows.parquet", *options).stdout)
    assert (values["images"], values["bad"]) == (6, [])
    wrong = tcl("pretrain", recipe, "--data", "rows.parquet", "data.text_column=absent", "--dry-run")
    assert wrong.code == 2 and "no column absent among Foto (bytes), Wort" in wrong.stderr


def test_dry_run_writes_nothing(recipe: str, tcl: Any) -> None:
    result = tcl("pretrain", recipe, "--dry-run")
    assert result.code == 0 and "nothing was written" in result.stderr
    assert not Path("runs").exists()


def test_resume_continues_starts_and_says_which(recipe: str, tcl: Any) -> None:
    started = tcl("pretrain", recipe, "--out", "runs/a", "--resume", "train.steps=2")
    assert started.code == 0 and "Nothing to resume in runs/a: starting." in started.stderr
    continued = tcl("pretrain", recipe, "--out", "runs/a", "--resume")
    assert continued.code == 0 and "Continuing runs/a at step 2." in continued.stderr
    finished = tcl("pretrain", "--resume")  # the latest run, with its own recipe
    assert finished.code == 0 and "runs/a is finished" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "expected", "hint"),
    [
        (["nothing.yaml"], "no recipe 'nothing.yaml'", "shipped recipes: demo"),
        (["dmo"], "no recipe 'dmo'", "did you mean 'demo'?"),
        (["tiny.yaml", "optim.learning_rate=1"], "optim.learning_rate: no such setting; did you mean", ""),
        (["tiny.yaml", "optim.lr=fast"], "optim.lr: input should be a valid number", ""),
        (["tiny.yaml", "loss.alpha=2"], "loss.alpha: input should be less than or equal to 1, not 2", ""),
        (["tiny.yaml", "other.yaml"], "more than one recipe", "section.key=value"),
        (["tiny.yaml", "--data", "missing.csv"], "missing.csv", ""),
        (["tiny.yaml", "--data", "scenes:test"], "not a set of scenes", "scenes:SPLIT:COUNT:SEED"),
        (["tiny.yaml", "data.train=[]"], "data.train names no pairs", "--data"),
        (["tiny.yaml", "--out", "tiny.yaml"], "tiny.yaml is a file", "--out"),
        (["tiny.yaml", "--out", "tiny.yaml/run"], "tiny.yaml/run", "--out"),
        (["tiny.yaml", "--out", "occupied"], "occupied exists", "--resume"),
        (["tiny.yaml", "--out", "occupied", "--resume"], "occupied holds no run to resume", "--out"),
        (["tiny.yaml", "model.tokenizer=absent.txt"], "absent.txt", ""),
        (["tiny.yaml", "model.image_encoder=vit_huge"], "timm has no model 'vit_huge'", "for example"),
        (["tiny.yaml", "--device", "tpu"], "tpu", ""),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    recipe: str, tcl: Any, arguments: list[str], expected: str, hint: str
) -> None:
    Path("other.yaml").write_text("{}")
    Path("occupied").mkdir()
    Path("occupied/thesis.txt").write_text("precious")
    result = tcl("pretrain", *arguments)
    assert result.code == 2, result.stderr
    assert expected in result.stderr and hint in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert Path("occupied/thesis.txt").read_text() == "precious" and not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("broken.json", '[\n{"image": "a.png", "caption": "x"},\n{"image": }\n]', "broken.json line 3: malformed JSON"),
        ("broken.jsonl", '{"image": "a.png", "caption": "x"}\n{"image"\n', "broken.jsonl line 2: malformed JSON"),
        ("rows.jsonl", '{"caption": "no image"}\n{"image": "a.png"}\n', "rows.jsonl"),
        ("columns.csv", "picture,words\na.png,x\n", "picture"),
    ],
)
def test_data_that_is_bad_inside_is_exit_1(recipe: str, tcl: Any, name: str, content: str, expected: str) -> None:
    Path(name).write_text(content)
    result = tcl("pretrain", recipe, "--data", name)
    assert result.code == 1, result.stderr
    assert expected in result.stderr and "Traceback" not in result.stderr and not Path("runs").exists()


def test_a_run_that_failed_before_it_began_blocks_nothing(recipe: str, tcl: Any, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data")
    wrong = tcl("pretrain", recipe, "--data", str(pairs), "--images", ".", "--out", "runs/a")
    assert wrong.code == 1 and "none of the 6 images looked at is there" in wrong.stderr and "--images" in wrong.stderr
    assert not Path("runs").exists()
    right = tcl("pretrain", recipe, "--data", str(pairs), "--out", "runs/a", "train.steps=1")
    assert right.code == 0, right.stderr


def test_folders_without_pairs(recipe: str, tcl: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "alone/a.png")
    for folder in ("empty", "alone"):
        result = tcl("pretrain", recipe, "--data", folder)
        assert result.code == 1 and folder in result.stderr, result.stderr


def test_rows_that_are_skipped_are_counted(recipe: str, tcl: Any, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data")
    with pairs.open("a") as file:
        file.write('{"image": "0.png"}\n{"captions": ["no image"]}\n{"image": "1.png", "captions": ["!!!"]}\n')
    result = tcl("pretrain", recipe, "--data", str(pairs), "train.steps=1")
    assert result.code == 0, result.stderr
    assert "3 rows skipped" in result.stderr and "pairs.jsonl line 7: " in result.stderr


def test_odd_names_and_captions(recipe: str, tcl: Any, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data").rename(tmp_path / "data/x😀.jsonl")
    with pairs.open("a") as file:
        file.write('{"image": "0.png", "caption": "a cut emoji \\ud83d"}\n')
    result = tcl("pretrain", recipe, "--data", str(pairs), "train.steps=1")
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("build", ["pickle", "vocabulary"])
def test_models_that_are_refused(recipe: str, tcl: Any, tiny_model_folder: Path, tmp_path: Path, build: str) -> None:
    if build == "pickle":
        (tmp_path / "model.pth").write_bytes(pickle.dumps(print))
        result = tcl("eval", "retrieval", "--data", "scenes:val:4", "--model", "model.pth")
        assert result.code == 1 and "refused" in result.stderr
    else:
        shutil.copytree(tiny_model_folder, "model")
        CaptionTokenizer.train([f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmn" for c in "opqrst"], 900).save(
            "model"
        )
        result = tcl("eval", "retrieval", "--data", "scenes:val:4", "--model", "model")
        assert result.code == 1 and "its vocabulary has" in result.stderr
    assert "Traceback" not in result.stderr and "  -> " in result.stderr


def test_resuming_with_another_model_size(recipe: str, tcl: Any) -> None:
    assert tcl("pretrain", recipe, "--out", "runs/a", "train.steps=2").code == 0
    result = tcl("pretrain", recipe, "--out", "runs/a", "--resume", "model.embed_dim=8")
    assert result.code == 2 and "model.embed_dim is 8 now, but 16" in result.stderr


def test_fewer_pairs_than_a_batch_trains_and_says_so(recipe: str, tcl: Any) -> None:
    result = tcl("pretrain", recipe, "data.train=[scenes:train:3]", "train.steps=1")
    assert result.code == 0 and "3 pairs are fewer than batch_size 4 asks for" in result.stderr


def test_evaluation_leaves_out_what_it_cannot_read(
    recipe: str, tcl: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "data")
    (tmp_path / "data/2.png").write_bytes(b"\x89PNG no more")
    result = tcl("eval", "retrieval", "--model", str(tiny_model_folder), "--data", str(pairs))
    assert result.code == 0 and "1 image left out" in result.stderr and "2.png" in result.stderr
    assert "re-ranked" in result.stdout
    for row in range(5):
        (tmp_path / f"data/{row}.png").unlink()
    result = tcl("eval", "retrieval", "--model", str(tiny_model_folder), "--data", str(pairs))
    assert result.code == 1 and "at least two readable images, found 1" in result.stderr


def test_evaluation_without_a_model(recipe: str, tcl: Any) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:8")
    assert result.code == 2 and "tcl pretrain" in result.stderr and "--model" in result.stderr
