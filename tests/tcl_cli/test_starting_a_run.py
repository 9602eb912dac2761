"""What `tcl pretrain` and `tcl finetune` find out before they begin: a folder that is taken, a run that is finished,
images that are missing, a batch that suits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("where", ["given", "found"])
def test_a_run_that_was_stopped_before_its_config_is_resumed_as_what_it_was(
    recipe: str, tcl: Any, stop: signal.Signals, where: str
) -> None:
    """While its data are read, which may take long; `--resume` alone never starts something else."""
    out = ["--out", "runs/a"] if where == "given" else []
    name = "a" if where == "given" else "tiny"
    assert tcl("pretrain", recipe, "--out", "runs/earlier", "train.steps=1").code == 0
    killed = f"import os, tcl.tasks.build; tcl.tasks.build.build_training = lambda *_: os.kill(os.getpid(), {stop})"
    command = f"import sys; {killed}; from tcl_cli.main import run; sys.exit(run(sys.argv[1:]))"
    arguments = ["pretrain", recipe, "--data", "scenes:train:12", *out, "train.steps=3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == (130 if stop == signal.SIGINT else -stop), done.stderr
    assert not Path("runs", name, "config.yaml").exists()
    resumed = tcl("pretrain", "--resume", *out)
    assert resumed.code == 0 and f"Nothing to resume in runs/{name}: starting." in resumed.stderr, resumed.stderr
    trained = yaml.safe_load(Path("runs", name, "config.yaml").read_text())
    assert trained["data"]["train"] == ["scenes:train:12"] and trained["train"]["steps"] == 3
    assert trained["model"]["embed_dim"] == SETTINGS["model"]["embed_dim"]
    assert not Path("runs", name, ".recipe.yaml").exists()


def test_a_fine_tuning_that_was_stopped_early_is_resumed_with_its_own_recipe(workplace: Path, tcl: Any) -> None:
    write_rows(workplace / "questions.jsonl", [question(number) for number in range(5)])
    settings = ("train.steps=2", "data.workers=0", "data.batch_size=3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcl.tasks.build.build_training", Mock(side_effect=KeyboardInterrupt))
        stopped = tcl("finetune", "vqa", "--model", "runs/tiny", "--data", "questions.jsonl", *settings)
    assert stopped.code == 130
    resumed = tcl("finetune", "vqa", "--resume")
    assert resumed.code == 0 and "Nothing to resume in runs/vqa: starting." in resumed.stderr, resumed.stderr
    assert yaml.safe_load(Path("runs/vqa/config.yaml").read_text())["train"]["steps"] == 2


@pytest.mark.parametrize("there", [False, True])
def test_to_resume_nothing_is_not_to_begin_the_demo(recipe: str, tcl: Any, there: bool) -> None:
    if there:
        Path("runs/a").mkdir(parents=True)
    refused = tcl("pretrain", "--resume", "--out", "runs/a")
    assert refused.code == 2 and "runs/a holds no run to resume, and nothing says what to train" in refused.stderr
    assert Path("runs/a").exists() == there


def test_a_start_that_failed_leaves_nothing(recipe: str, tcl: Any) -> None:
    assert tcl("pretrain", recipe, "--data", "absent.csv").code == 2
    assert not Path("runs").exists()


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


@pytest.fixture
def unnamed(workplace: Path) -> str:
    """A recipe for weights of `runs/tiny`, whose vocabulary is the default: BERT's, from the hub."""
    model = {key: value for key, value in SETTINGS["model"].items() if key != "tokenizer"}
    Path("bert.yaml").write_text(yaml.safe_dump(SETTINGS | {"model": model}))
    return "bert.yaml"


def test_a_model_to_start_from_brings_its_vocabulary(unnamed: str, tcl: Any) -> None:
    started = tcl("pretrain", unnamed, "--init", "runs/tiny", "--out", "runs/a", "train.steps=1")
    assert started.code == 0, started.stderr
    assert Path("runs/a/model/tokenizer.json").read_bytes() == Path("runs/tiny/model/tokenizer.json").read_bytes()


def test_a_text_encoder_brings_its_vocabulary(unnamed: str, tcl: Any) -> None:
    """Offline, so the vocabulary that is asked of the hub cannot be had."""
    shutil.copytree("runs/tiny/model", "encoder")
    started = tcl("pretrain", unnamed, "model.pretrained=true", "model.text_encoder=encoder", "--dry-run")
    assert started.code == 2 and "model.tokenizer" not in started.stderr and "model.image_encoder" in started.stderr


def test_a_published_checkpoint_without_a_vocabulary_or_network(unnamed: str, tcl: Any) -> None:
    assert tcl("convert", "runs/tiny", "TCL_4M.pth").code == 0
    heads = ("model.image_encoder_args.num_heads=1", "model.text_encoder_args.num_attention_heads=1")
    command = ("pretrain", unnamed, *heads, "--init", "TCL_4M.pth", "--out", "runs/a")
    refused = tcl(*command)
    assert refused.code == 2 and "Error: model.tokenizer: cannot get the tokenizer bert-base-uncased" in refused.stderr
    assert "put the vocab.txt of BERT beside TCL_4M.pth, or name a vocabulary that is here: model.tokenizer=PATH" in (
        refused.stderr
    )
    Path("words").mkdir()
    shutil.copy("runs/tiny/model/tokenizer.json", "words")
    named = tcl(*command, "model.tokenizer=words/tokenizer.json", "train.steps=2")
    assert named.code == 0, named.stderr
    shutil.rmtree("words")
    resumed = tcl(*command, "--resume")  # without naming it again
    assert resumed.code == 0 and "Continuing runs/a at step 2" in resumed.stderr, resumed.stderr
    recorded = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert recorded["model"]["tokenizer"] == "words/tokenizer.json"
