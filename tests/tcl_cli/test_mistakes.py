"""What people type wrong: each is answered with what they meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tcl.config.recipe import SYNONYMS, nearest_setting, settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("epochs", "train.epochs"),
        ("batch", "data.batch_size"),
        ("batch-size", "data.batch_size"),
        ("lr", "optim.lr"),
        ("wd", "optim.weight_decay"),
        ("dim", "model.embed_dim"),
        ("seed", "train.seed"),
        ("optim.lrr", "optim.lr"),
        ("model.layers.of.a.cake", None),
    ],
)
def test_settings_by_other_names(typed: str, meant: str | None) -> None:
    assert nearest_setting(typed) == meant
    assert set(SYNONYMS.values()) <= {key for key, _ in settings()}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["pretrain", "--epochs", "3"], "settings are written without dashes: tcl pretrain train.epochs=3"),
        (["pretrain", "--lr=0.5"], "settings are written without dashes: tcl pretrain optim.lr=0.5"),
        (["finetune", "vqa", "--seed"], "settings are written without dashes: tcl finetune train.seed=VALUE"),
        (["embed", "images", "--epochs", "3"], "tcl embed --help"),
        (["eval", "zeroshot"], "did you mean tcl eval classification?"),
        (["train"], "did you mean tcl pretrain?"),
        (["recipes", "list"], "did you mean tcl recipes ls?"),
    ],
)
def test_commands_and_options_by_other_names(tcl: Any, command: list[str], expected: str) -> None:
    result = tcl(*command)
    assert result.code == 2 and f"  -> {expected}\n" in result.stderr


def test_a_missing_choice_is_one_plain_line(tcl: Any) -> None:
    result = tcl("finetune")
    assert result.code == 2 and "\\t" not in result.stderr and len(result.stderr.splitlines()) == 2
    assert "Choose from: retrieval, vqa, entailment" in result.stderr


def test_a_name_with_a_wrong_letter_has_a_neighbour(workplace: Path, tcl: Any) -> None:
    Path("pairs.csv").write_text("image,caption\nimages/1.png,a thing\n")
    Path("mine.yaml").write_text("train: {steps: 1}\n")
    for command, near in (
        (["pretrain", "--data", "pairz.csv"], "pairs.csv"),
        (["pretrain", "--data=pairz.csv"], "pairs.csv"),
        (["pretrain", "nine.yaml"], "mine.yaml"),
        (["embed", "imagse/", "--out", "vecs.npy"], "images"),
        (["embed", "images", "--out", "vecs.npy", "--model", "runs/tini"], "runs/tiny"),
    ):
        result = tcl(*command)
        assert result.code in (1, 2) and f"  -> did you mean {near}?\n" in result.stderr, (command, result.stderr)
        assert result.stderr.startswith("Error: ")  # and no line about the run that comes to nothing


def test_a_wrong_override_does_not_blame_the_recipe(tcl: Any) -> None:
    result = tcl("pretrain", "demo", "optim.learning_rate=1")
    assert result.stderr.startswith(
        "Error: the settings given: 1 wrong setting\n  optim.learning_rate: no such setting; did you mean optim.lr?\n"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tcl pretrain tcl-", {"tcl-4m", "tcl-14m"}),
        ("tcl pretrain optim.w", {"optim.warmup_lr=", "optim.warmup_steps=", "optim.weight_decay="}),
        ("tcl finetune vqa train.se", {"train.seed=", "train.select="}),
        ("tcl finetune v", {"vqa"}),
        ("tcl eval cl", {"classification"}),
        ("tcl recipes show dem", {"demo"}),
        ("tcl recipes validate demo loss.q", {"loss.queue_size="}),
    ],
)
def test_completion(words: str, expected: set[str]) -> None:
    environment = os.environ | {
        "_TCL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "PYTHONPATH": str(ROOT),
    }
    program = "import sys; sys.modules['torch'] = None; from tcl_cli.main import run; sys.exit(run([]))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr
