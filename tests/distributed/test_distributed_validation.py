"""Training under `torchrun` validates and tests in all processes: one log, the figures of one, and one end for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcl.distributed.world import World
from tcl.tasks.build import build_training
from tcl.training.loop import fit
from tcl.weights.files import checkpoints
from tcl_cli.main import run
from tests.distributed.ranks import run_ranks
from tests.training.test_train import metrics, tiny_recipe

SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from tcl.models.tcl import TCL
from tcl_cli import main

encode = TCL.encode_image

def act(self, images):
    if os.environ["RANK"] == "1" and not self.training and os.environ.get("PLAN") == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)  # as of a scheduler that stops one machine first
    return encode(self, images)

TCL.encode_image = act
sys.exit(main.run(sys.argv[1:]))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(SCRIPT)
    return tmp_path


def validations(folder: str) -> list[dict[str, Any]]:
    return [line for line in metrics(Path(folder)) if "loss" not in line]


def test_fine_tuning_validates_and_tests_as_one_process(place: Path, tiny_model_folder: Path) -> None:
    """Seven images in batches of three, three and one, the best candidates re-ranked."""
    command = ["finetune", "retrieval", "--model", str(tiny_model_folder), "--data", "scenes:train:12"]
    command += ["--val", "scenes:val:7", "--test", "scenes:val:5", "data.workers=0", "data.batch_size=3"]
    command += ["train.steps=3", "train.eval_every=1", "train.eval_top_k=2", "train.patience=2", "train.log_every=1"]
    done = run_ranks(2, "script.py", *command, "--out", "shared")
    assert done.returncode == 0, done.stderr
    assert run([*command, "--out", "alone", "train.accumulate=2"]) == 0
    assert validations("shared") == validations("alone") and len(validations("alone")) >= 2
    for name in ("best.json", "test.json", "predictions.jsonl", "best/model.safetensors", "model/model.safetensors"):
        assert Path("shared", name).read_bytes() == Path("alone", name).read_bytes(), name
    assert done.stderr.count("predictions to shared") == done.stdout.count("on the test rows") == 1


def recipe(**train: Any) -> Any:
    settings = {"steps": 4, "eval_every": 2, "checkpoint_every": 100} | train
    made = tiny_recipe(**settings)
    return made.model_copy(update={"data": made.data.model_copy(update={"val": ["scenes:val:9"]})})


def test_a_process_that_is_told_to_end_ends_the_validation_of_all(place: Path) -> None:
    Path("recipe.yaml").write_text(recipe().to_yaml())
    done = run_ranks(2, "script.py", "pretrain", "recipe.yaml", "--out", "run", PLAN="terminate")
    assert done.returncode == 0, done.stderr
    assert "Told to end by SIGTERM at step 2" in done.stderr and not validations("run")
    (checkpoint,) = checkpoints(Path("run"))
    again = recipe(accumulate=2)
    assert fit(build_training(again, World(), checkpoint), Path("run")).finished
    assert fit(build_training(again, World()), Path("alone")).finished
    assert validations("run") == validations("alone") and len(validations("run")) == 2
