"""The loop around the step: what is logged, saved, validated, kept and said, and when.

The step itself costs nothing here: it sets the temperature to a thousandth of its number, which tells whose weights are
in a file. Every run is also interrupted and resumed, and must leave the same.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tcl.distributed.world import World
from tcl.report.records import read_records
from tcl.tasks.build import build_training
from tcl.training.loop import TrainResult, fit
from tcl.training.reporter import Reporter
from tcl.training.trainer import Training
from tcl.weights.files import checkpoints
from tests.training.test_train import tiny_recipe


class Witness(Reporter):
    """Remembers what it hears, looks at the checkpoints, and sends a signal after a step."""

    def __init__(self, run: Path, signal_after: int | None = None) -> None:
        self.run, self.signal_after = run, signal_after
        self.said: list[str] = []
        self.began: list[tuple[int, int]] = []
        self.steps: list[int] = []
        self.most_kept = 0

    def message(self, text: str) -> None:
        self.said.append(text)

    note = message

    def started(self, first_step: int, total_steps: int) -> None:
        self.began.append((first_step, total_steps))

    def stepped(self, step: int) -> None:
        self.steps.append(step)
        self.most_kept = max(self.most_kept, len(checkpoints(self.run)))
        if step == self.signal_after:
            os.kill(os.getpid(), signal.SIGINT)


@dataclass
class Case:
    """A run, what its validations give, and what it must leave."""

    train: dict[str, Any]
    values: dict[int, float]  # by step: the steps are those that are validated
    logged: list[int]
    kept: list[int]  # checkpoints, when nothing interrupts
    model: int  # whose weights are the model of the run
    best: int | None
    interrupted: list[int]
    said: list[str] = field(default_factory=list)
    total: int | None = None  # steps that were planned, where fewer are done


CASES = {
    "last": Case(
        {"steps": 7, "log_every": 3, "checkpoint_every": 2, "eval_every": 4, "keep": 2},
        {4: 10.0, 7: 5.0},
        logged=[3, 6, 7],
        kept=[6, 7],
        model=7,
        best=4,
        interrupted=[4, 7],
    ),
    "gives up": Case(
        {"steps": 13, "log_every": 5, "checkpoint_every": 4, "eval_every": 2, "patience": 2},
        {2: 5.0, 4: 4.0, 6: 6.0, 8: 6.0, 10: 1.0},
        logged=[5, 10],
        kept=[4, 8, 10],
        model=10,
        best=6,
        interrupted=[6, 10],
        said=["No better in 2 validations: ending at step 10."],
        total=13,
    ),
    "best": Case(
        {"steps": 6, "log_every": 4, "checkpoint_every": 4, "eval_every": 1, "keep": 1, "select": "best"},
        {1: 1.0, 2: 3.0, 3: 3.0, 4: 2.0, 5: 3.0, 6: 0.0},
        logged=[4, 6],
        kept=[6],
        model=2,
        best=2,
        interrupted=[1, 3],
    ),
    "epochs": Case(
        {"steps": None, "epochs": 3, "accumulate": 2, "log_every": 5, "checkpoint_every": 100, "eval_every": None},
        {2: 1.0, 4: 0.5, 6: 2.0},
        logged=[5, 6],
        kept=[6],
        model=6,
        best=6,
        interrupted=[3, 4],
    ),
    "gives up where it ends anyway": Case(
        {"steps": 4, "log_every": 2, "checkpoint_every": 3, "eval_every": 2, "patience": 1, "select": "best"},
        {2: 5.0, 4: 1.0},
        logged=[2, 4],
        kept=[3, 4],
        model=2,
        best=2,
        interrupted=[4],
    ),
}


def train(case: Case, run: Path, witness: Witness, checkpoint: Path | None = None) -> tuple[TrainResult, Training]:
    """`fit` with steps and validations that cost nothing; every batch must be the one that is due."""
    recipe = tiny_recipe(**{"keep": 3} | case.train)
    data = recipe.data.model_copy(update={"augment": "none", "val": ["scenes:val:4"] if case.values else []})
    training = build_training(recipe.model_copy(update={"data": data}), World(), checkpoint, witness)
    per_epoch, per_step = training.loader.steps_per_epoch, training.recipe.train.accumulate
    rows = [
        [batch.sample_ids for batch in training.loader.batches(epoch)]
        for epoch in range(case.kept[-1] // per_epoch + 1)
    ]

    def train_step(batches: list[Any], with_statistics: bool = False) -> dict[str, torch.Tensor]:
        epoch, place = divmod(training.step, per_epoch)
        expected = rows[epoch][place * per_step : (place + 1) * per_step]
        assert [batch.sample_ids for batch in batches] == expected and len(expected) == per_step
        training.step += 1
        with torch.no_grad():
            training.model.temp.fill_(training.step / 1000)
        training.statistics = {"temperature": training.step / 1000} if with_statistics else {}
        return {"loss": torch.tensor(float(training.step))}

    training.train_step = train_step  # type: ignore[method-assign]
    training.task.validate = lambda share: {"r_mean": case.values[training.step]}  # type: ignore[method-assign]
    training.task.examples = list  # type: ignore[method-assign]
    return fit(training, run), training


def step_of(folder: Path) -> int:
    """Whose weights are in a model folder."""
    return round(1000 * load_file(folder / "model.safetensors")["temp"].item())


def check(case: Case, run: Path, interrupted: bool, per_epoch: int, per_step: int) -> None:
    lines = read_records(run / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    validated = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in logged] == case.logged
    for line in logged:
        step = line["step"]
        assert line["loss"] == step and line["temperature"] == step / 1000
        assert "peak_memory_gb" not in line  # of a GPU
        assert line["epoch"] == step / per_epoch and line["samples"] == step * 4 * per_step
    assert [(line["step"], line["val_r_mean"]) for line in validated] == list(case.values.items())
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)

    folders = checkpoints(run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {folder.name for folder in folders}
    assert [step_of(folder) for folder in folders] == [int(folder.name[-8:]) for folder in folders]
    assert int(folders[-1].name[-8:]) == case.kept[-1] and len(folders) <= case.train.get("keep", 3)
    if not interrupted:
        assert [int(folder.name[-8:]) for folder in folders] == case.kept
    assert step_of(run / "model") == case.model
    best: Mapping[str, Any] = json.loads((run / "best.json").read_text())
    assert best == {"step": case.best, "metric": "r_mean", "value": case.values[best["step"]]}
    assert step_of(run / "best") == case.best
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "after"), [(name, after) for name, case in CASES.items() for after in (None, *case.interrupted)]
)
def test_what_a_run_leaves(name: str, after: int | None, tmp_path: Path) -> None:
    case, run = CASES[name], tmp_path / "run"
    witness = Witness(run, after)
    end, keep = case.kept[-1], case.train.get("keep", 3)
    result, training = train(case, run, witness)
    assert witness.began == [(0, case.total or end)] and witness.most_kept <= keep
    if after is not None:
        at_the_end = after == training.total_steps
        assert result == TrainResult(run, after, finished=at_the_end, signal=signal.SIGINT)
        assert (run / "model").exists() == at_the_end and witness.steps == list(range(1, after + 1))
        assert checkpoints(run)[-1].name == f"step-{after:08d}"
        assert json.loads((checkpoints(run)[-1] / "meta.json").read_text())["epoch"] == (
            after / training.loader.steps_per_epoch
        )
        witness = Witness(run)
        result, training = train(case, run, witness, checkpoints(run)[-1])
        assert witness.began == [(after, case.total or end)]
    assert result == TrainResult(run, end, finished=True, signal=0)
    assert witness.steps == list(range((after or 0) + 1, end + 1)) and witness.said == case.said
    check(case, run, after is not None, training.loader.steps_per_epoch, training.recipe.train.accumulate)


@pytest.mark.parametrize("at", [4, 7])
def test_a_validation_that_fails_costs_no_steps(at: int, tmp_path: Path) -> None:
    """The checkpoint comes first, and the validation is the first thing that a resumed run does."""
    run, case = tmp_path / "run", CASES["last"]
    with pytest.raises(KeyError):
        train(
            replace(case, values={step: value for step, value in case.values.items() if step != at}), run, Witness(run)
        )
    assert checkpoints(run)[-1].name == f"step-{at:08d}"
    train(case, run, Witness(run), checkpoints(run)[-1])
    check(case, run, True, 5, 1)


@pytest.mark.parametrize("choice", [{"patience": 1}, {"select": "best"}, {}], ids=str)
def test_choices_that_need_validation_data(choice: dict[str, Any], tmp_path: Path) -> None:
    run, witness = tmp_path / "run", Witness(tmp_path / "run")
    case = Case({"steps": 3, "checkpoint_every": 2} | choice, {}, [3], kept=[3], model=3, best=None, interrupted=[])
    result, _ = train(case, run, witness)
    assert result.finished and step_of(run / "model") == 3 and not (run / "best.json").exists()
    assert [line["step"] for line in read_records(run / "metrics.jsonl")] == [1, 2, 3]
    no_effect = ["without validation data, train.patience and train.select=best have no effect: use --val"]
    assert witness.said == no_effect * bool(choice)


@pytest.mark.parametrize(("since", "warmup", "told"), [(2, 0, True), (2, 50, False), (0, 0, False)])
def test_a_resumed_run_is_examined_with_what_was_logged_before(
    since: int, warmup: int, told: bool, tmp_path: Path
) -> None:
    """A loss that stays where chance is for 200 steps after the warm-up; said once, and not again."""
    run, witness = tmp_path / "run", Witness(tmp_path / "run")
    run.mkdir()
    recipe = tiny_recipe(steps=202)
    optim = recipe.optim.model_copy(update={"warmup_steps": warmup})
    training = build_training(recipe.model_copy(update={"optim": optim}), World(), reporter=witness)
    chance = math.log(4 + 13)  # the batch and the queue
    losses = {"loss": chance, "cma_i2t": chance, "cma_t2i": chance}
    lines = [{"step": step} | losses for step in range(since, 202, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def train_step(batches: list[Any], with_statistics: bool = False) -> dict[str, torch.Tensor]:
        training.step += 1
        return {name: torch.tensor(value) for name, value in losses.items()}

    training.step = 201
    training.train_step = train_step  # type: ignore[method-assign]
    training.task.examples = list  # type: ignore[method-assign]
    fit(training, run)
    assert [said.startswith("step 202: ") for said in witness.said] == [True] * told
