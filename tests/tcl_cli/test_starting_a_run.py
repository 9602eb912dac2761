"""What `tcl pretrain` and `tcl finetune` find out before they begin: a folder that is taken, a run that is finished,
images that are missing, a batch that suits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcl.config.recipe import Recipe
from tcl.files.locks import hold_run
from tcl_cli.train.training import bounded
from tests.tasks.finetuning import question, write_rows
from tests.tcl_cli.test_pretrain_eval import SETTINGS, write_pairs

ROOT = Path(__file__).parent.parent.parent
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from tcl_cli.main import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny recipe in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    return "tiny.yaml"


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "tiny.yaml", "--data", "absent.csv"],
        ["pretrain", "tiny.yaml", "--data", "absent.csv", "--resume"],
        ["finetune", "vqa", "--model", "absent", "--data", "absent.jsonl", "--test", "absent.jsonl"],
        ["finetune", "vqa", "--model", "absent", "--data", "absent.jsonl", "--resume"],
    ],
)
def test_a_folder_that_is_taken_is_the_first_thing_to_be_said(recipe: str, command: list[str]) -> None:
    """Before torch is loaded, which is not there, and before data or model are looked for."""
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump(SETTINGS))
    with hold_run(Path("run")):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *command, "--out", "run"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2 and "Error: run: another process trains in this folder" in done.stderr


def test_a_dry_run_does_not_mind_the_run_that_goes_on(recipe: str, tcl: Any) -> None:
    with hold_run(Path("run"), tidy=False):
        result = tcl("pretrain", recipe, "--out", "run", "--dry-run")
    assert result.code == 0, result.stderr
    assert tcl("pretrain", recipe, "--out", "run", "train.steps=1").code == 0  # of a killed start only the lock is left


def test_many_epochs_are_a_plain_number(recipe: str, tcl: Any) -> None:
    told = tcl("pretrain", recipe, "--out", "run", "--dry-run", "train.steps=100000").stderr
    assert re.search(r"^Training   100000 steps \(\d{3,} epochs\)$", told, re.MULTILINE), told


def test_a_finished_run_says_so_at_once(recipe: str, tcl: Any) -> None:
    first = tcl("pretrain", recipe, "--out", "runs/a")
    again = tcl("pretrain", recipe, "--out", "runs/a", "--resume")
    assert again.code == first.code == 0 and again.stdout == first.stdout
    assert "runs/a is finished, there is nothing left to do. Its model: runs/a/model" in again.stderr
    assert "tcl export --model runs/a" in again.stderr
    for slow_or_wrong in ("Model  ", "Memory  ", "Continuing"):
        assert slow_or_wrong not in again.stderr
    dry = tcl("pretrain", recipe, "--out", "runs/a", "--resume", "--dry-run")
    assert dry.code == 0 and "is finished" in dry.stderr and "tcl export" not in dry.stderr


def test_a_run_that_is_not_quite_finished_goes_on(recipe: str, tcl: Any) -> None:
    validated = (recipe, "--out", "runs/a", "--resume", "--val", "scenes:val:4", "train.epochs=1", "train.steps=null")
    assert tcl("pretrain", *validated).code == 0  # 5 steps
    finished = tcl("pretrain", *validated)
    assert "is finished" in finished.stderr
    model = Path("runs/a/model/model.safetensors")
    shutil.rmtree(model.parent)
    without = tcl("pretrain", *validated)
    assert without.code == 0 and "Continuing runs/a at step 5" in without.stderr and model.is_file(), without.stderr
    best = json.loads(Path("runs/a/best.json").read_text())
    other = tcl("pretrain", *validated, "train.select=best")
    assert other.code == 0 and ("is finished" in other.stderr) == (best["step"] == 5)
    assert model.read_bytes() == Path("runs/a/best/model.safetensors").read_bytes()
    longer = tcl("pretrain", *validated, "train.epochs=2")
    assert "Continuing runs/a at step 5" in longer.stderr


def test_missing_images_end_a_dry_run_too(recipe: str, tcl: Any, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data")
    wrong = tcl("pretrain", recipe, "--data", str(pairs), "--images", ".", "--dry-run")
    assert wrong.code == 1 and "none of the 6 images looked at is there; the first is " in wrong.stderr
    assert "relative paths start from --images" in wrong.stderr and "Memory" not in wrong.stderr
    (tmp_path / "data" / "0.png").unlink()
    some = tcl("pretrain", recipe, "--data", str(pairs), "--dry-run")
    assert some.code == 0 and some.stderr.count("at least 1 (17%) are missing") == 1
    assert "0.png: no such file" in some.stderr and "Memory" in some.stderr


def test_auto_keeps_to_the_recipe_and_the_data_on_a_cpu(recipe: str, tcl: Any) -> None:
    few = tcl("pretrain", recipe, "--device", "cpu", "--batch-size", "auto", "--dry-run")
    assert few.code == 0, few.stderr
    assert "Batch      2 per device and forward pass: so that an epoch has 8 steps or more (memory has" in few.stderr
    assert "10 steps of 2 per epoch" in few.stderr
    many = ("--data", "scenes:train:500", "--device", "cpu", "--batch-size", "auto", "train.steps=1")
    enough = tcl("pretrain", recipe, *many)
    assert "Batch      4 per device and forward pass: that of the recipe, as a CPU" in enough.stderr
    assert yaml.safe_load(Path("runs/tiny/config.yaml").read_text())["data"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("fits", "samples", "processes", "on_cpu", "expected"),
    [
        (4096, 10**6, 1, False, 4096),
        (4096, 10**6, 1, True, 64),
        (40, 10**6, 1, True, 40),
        (4096, 1000, 1, False, 120),
        (4096, 1000, 4, False, 24),  # accumulated: half of it
        (4096, 50, 1, True, 6),
        (4096, 3, 1, False, 1),
    ],
)
def test_bounds_of_the_batch(fits: int, samples: int, processes: int, on_cpu: bool, expected: int) -> None:
    recipe = Recipe()
    assert recipe.data.batch_size == 64
    assert bounded(fits, samples, recipe, processes, on_cpu=on_cpu)[0] == expected
    if processes > 1:
        train = recipe.train.model_copy(update={"accumulate": 2})
        halved = bounded(fits, samples, recipe.model_copy(update={"train": train}), processes, on_cpu=on_cpu)
        assert halved[0] == 8


def test_the_time_is_told_in_the_words_of_the_task(workplace: Path, tcl: Any) -> None:
    write_rows(workplace / "questions.jsonl", [question(number) for number in range(5)])
    settings = ("train.steps=1", "data.workers=0", "data.batch_size=3", "--dry-run")
    result = tcl("finetune", "vqa", "--model", "runs/tiny", "--data", "questions.jsonl", *settings)
    assert result.code == 0, result.stderr
    assert " questions/s measured at batch 3: " in result.stderr and "for an epoch of 3 questions" in result.stderr
