"""Whole training runs against those of the published code, step by step (`golden/TRAJECTORY.md`).

`Training` and the loop around it run as they are. Only what is random is recorded: the batches replace the loader's,
the masked words replace `mask_tokens`, and the hard negatives replace the draw, which must be given the recorded
weights.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tcl.config.recipe import Recipe, build_recipe
from tcl.data.labels.samples import StatementBatch
from tcl.data.loader import Batch
from tcl.data.pairs.samples import IdentifiedBatch, PairBatch
from tcl.distributed.world import World
from tcl.objective import retrieval as retrieval_objective
from tcl.objective import sampling
from tcl.objective.sampling import MaskedTokens
from tcl.tasks import pretraining
from tcl.tasks.build import build_training
from tcl.training.loop import fit
from tcl.training.reporter import Reporter
from tcl.training.trainer import Training
from tcl.weights.files import checkpoints
from tests.conftest import GOLDEN
from tests.tasks.cases import task_config
from tests.tasks.finetuning import statement, write_rows

TOLERANCE = 2e-5
LOSSES = {
    "cma_i2t": "loss_i2t",
    "cma_t2i": "loss_t2i",
    "imc_image": "loss_i2i",
    "imc_text": "loss_t2t",
    "lmi_image": "loss_i2i_inMod_l",
    "lmi_text": "loss_t2t_inMod_l",
    "contrastive": "loss_ita",
    "itm": "loss_itm",
    "mlm": "loss_mlm",
    "accuracy": "accuracy",
    "loss": "loss_total",
}


@dataclass
class Recording:
    """A recorded run, and what is seen of the same run here."""

    case: str
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    part: tuple[str, ...] = ()  # of the recording: none is the run itself, the others are short ones beside it
    alphas: list[float] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self._part["steps"]

    @property
    def checksums(self) -> dict[int, dict[str, list[float]]]:
        return {int(number): sums for number, sums in self._part["checksums"].items()}

    @property
    def _part(self) -> dict[str, Any]:
        return functools.reduce(lambda values, name: values[name], self.part, self.values)

    def of_step(self, number: int, name: str) -> Tensor:
        """A tensor of a step, counted from 1; those that a short run has not are the main run's."""
        own = "/".join(["_".join(self.part), f"step{number}", name]).lstrip("/")
        return self.tensors[own if own in self.tensors else f"step{number}/{name}"]

    def pixels(self, number: int, name: str) -> Tensor:
        return (self.of_step(number, name).float() - 128) / 64

    def batch(self, number: int) -> Batch:
        """Batch of a step, counted from 1, as the loader of the task gives it."""
        ids, images = [f"row {row}" for row in range(4)], self.pixels(number, "image_u8")
        words = self.of_step(number, "input_ids"), self.of_step(number, "attention_mask").bool()
        if self.case == "trajectory_ve":
            return StatementBatch(ids, [], images, *words, self.of_step(number, "targets"))
        views = images, self.pixels(number, "image_aug_u8")
        if self.case == "trajectory_retrieval":
            return IdentifiedBatch(ids, [], *views, *words, self.of_step(number, "idx"))
        return PairBatch(ids, [], *views, *words)

    def masked(self, number: int) -> MaskedTokens:
        labels = self.of_step(number, "mlm_labels").flatten()
        positions = (labels != -100).nonzero().squeeze(1)
        return MaskedTokens(self.of_step(number, "mlm_input_ids"), positions, labels[positions])


@pytest.fixture
def recorded(golden: Any) -> Callable[..., Recording]:
    return lambda case, **part: Recording(case, *golden(case), **part)


def relative(actual: float, expected: float) -> float:
    return abs(actual - expected) / (1 + abs(expected))


def recipe_of(recording: Recording, folder: Path) -> Recipe:
    """The published settings of a recording, by the names of a recipe."""
    run, sizes = recording.values["training"], task_config(recording.values).model_dump()
    labels = ("contradiction", "neutral", "entailment")
    task, source = {
        "trajectory": ("pretrain", "scenes:train:1000"),
        "trajectory_retrieval": ("retrieval", "scenes:train:12"),
        "trajectory_ve": ("entailment", str(folder / "rows.jsonl")),
    }[recording.case]
    if task == "entailment":
        write_rows(folder / "rows.jsonl", [statement(task, row, labels[row % 3]) for row in range(8)])
    return build_recipe(
        {
            "task": task,
            "model": {
                **sizes,
                "text_encoder_args": sizes["text_encoder_args"] | {"dropout": run["dropout"]},
                "tokenizer": str(GOLDEN / "vocab.txt"),
            },
            "loss": {
                **{name: run[name] for name in ("momentum", "alpha", "alpha_ramp")},
                "queue_size": recording.values["sizes"]["queue_size"],
            },
            "optim": {
                **{name: run[name] for name in ("lr", "warmup_lr", "min_lr", "warmup_steps", "weight_decay")},
                "schedule": "published",
                "clip_norm": run["clip_norm"],
            },
            "data": {"train": [source], "batch_size": 4, "workers": 0, "augment": "none"},
            "train": {"epochs": run["epochs"], "log_every": 1, "checkpoint_every": 1, "keep": 100},
        }
    )


def our_name(recorded: str) -> str:
    """The name here of a tensor of the published state, after `teacher.` or `queue.` where it is theirs."""
    module, dot, rest = recorded.partition(".")
    if module.endswith("queue") or module == "queue_ptr":
        return f"queue.{recorded}"
    teacher, module = ("teacher.model." if module.endswith("_m") else ""), module.removesuffix("_m")
    bare = module == "text_encoder" and not rest.startswith(("bert.", "cls."))
    return f"{teacher}{module}{dot}{'bert.' * bare}{rest}"


def state_of(weights: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Tensor]:
    """Model, teacher and queue in one, from the two files of a checkpoint."""
    parts = {f"{part}.{name}": t for part in ("teacher", "queue") for name, t in state.get(part, {}).items()}
    return {**weights, **parts}


def start(
    recording: Recording,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    reporter: Reporter | None = None,
    temperature: float | None = None,
) -> Training:
    """A new run at the recorded state, with the recorded draws, and an eye on what its forward passes are given."""
    training = build_training(recipe, World(), reporter=reporter)
    recorded = {our_name(name.removeprefix("state/")): tensor for name, tensor in recording.tensors.items()}
    theirs = {name for name in recorded if name in state_of(training.model.state_dict(), training.task.state_dict())}
    assert len(theirs) > 100 and "visual_encoder.cls_token" in theirs
    weights = {name: recorded[name] for name in theirs if not name.startswith(("teacher.", "queue."))}
    training.model.load_state_dict(training.model.state_dict() | weights)
    state = training.task.state_dict()
    for part in state:
        state[part] |= {name: recorded[f"{part}.{name}"] for name in state[part] if f"{part}.{name}" in theirs}
    training.task.load_state_dict(state)
    if temperature is not None:
        with torch.no_grad():
            training.model.temp.fill_(temperature)
    replay(recording, training, monkeypatch)
    return training


def replay(recording: Recording, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what is random by what is recorded, for the step under way."""
    draws: list[str] = []

    def number() -> int:
        return len(recording.alphas)  # of forward passes begun, so of the step under way

    def recorded_draw(weights: Tensor, generator: torch.Generator | None = None, count: int = 1) -> Tensor:
        direction = ("t2i", "i2t")[len(draws) % 2]  # images first, then texts
        draws.append(direction)
        expected = recording.of_step(number(), f"weights_{direction}")
        difference = (weights - expected / expected.sum(dim=1, keepdim=True)).abs().max()
        assert difference <= TOLERANCE, f"weights_{direction} of step {number()}: {difference:.1e}"
        return recording.of_step(number(), f"neg_{'image' if direction == 't2i' else 'text'}_idx")[:, None]

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        recording.alphas.append(next(value for value in arguments if isinstance(value, float)))
        recording.temperatures.append(training.model.temp.item())
        for net in (training.model, training.objective.teacher.model):
            assert all(encoder.training for encoder in (*net.visual_encoder.modules(), *net.text_encoder.modules()))

    training.objective.register_forward_pre_hook(look)
    for module in (sampling, retrieval_objective):
        monkeypatch.setattr(module, "draw_by_weight", recorded_draw)
    # Words are masked before the forward pass.
    monkeypatch.setattr(pretraining, "mask_tokens", lambda *_, **__: recording.masked(number() + 1))
    assert recording.values["training_mode"] == dict.fromkeys(recording.values["training_mode"], True)


def recorded_batches(recording: Recording, steps_per_epoch: int) -> Callable[..., Iterator[Batch]]:
    def batches(epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, steps_per_epoch):
            yield recording.batch(epoch * steps_per_epoch + step + 1)

    return batches


def check_step(recording: Recording, number: int, line: dict[str, float], tolerance: float = TOLERANCE) -> None:
    """One step as the run logs it: losses, gradient norm, learning rate; and what its forward pass was given."""
    step = recording.steps[number - 1]
    names = {ours: theirs for ours, theirs in LOSSES.items() if theirs in step} | {"grad_norm": "grad_norm"}
    assert set(names.values()) == {name for name in step if name.startswith(("loss", "grad", "acc"))}
    for ours, theirs in names.items():
        difference = relative(line[ours], step[theirs])
        assert difference <= tolerance, f"{theirs} of step {number}: {line[ours]} is {difference:.1e} off"
    assert line["lr"] == pytest.approx(step["lr"], rel=1e-12), number
    assert recording.alphas[number - 1] == pytest.approx(step["alpha"], rel=1e-12), number
    if "temp_in_forward" in step:
        assert relative(recording.temperatures[number - 1], step["temp_in_forward"]) <= 1e-6, number


def comparable(name: str, tensor: Tensor) -> Tensor | None:
    """What of a recorded tensor is more than rounding (`golden/README.md`), and not the copy of a tied one."""
    if name.endswith((".key.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")):
        return None
    if name.endswith("attn.qkv.bias"):
        return tensor.unflatten(0, (3, -1))[[0, 2]].flatten()
    return tensor


def check_tensors(recording: Recording, actual: dict[str, Tensor]) -> None:
    """The complete state after the last step."""
    finals = {key.removeprefix("final/"): t for key, t in recording.tensors.items() if key.startswith("final/")}
    compared = 0
    for name, expected in finals.items():
        ours = actual[our_name(name)]
        if comparable(name, expected) is not None:
            a, b = comparable(name, ours.double()), comparable(name, expected.double())
            assert ((a - b).abs() / (1 + b.abs())).max() <= TOLERANCE, name
            compared += 1
    trained = [name for name in actual if not name.endswith(".key.bias") and our_name("text_encoder.cls") not in name]
    assert compared >= 0.9 * len(trained)


def check_sums(checksums: dict[str, list[float]], actual: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Sum and norm of every tensor of model, teacher and queue."""
    for name, (total, norm) in checksums.items():
        if comparable(name, torch.zeros(3)) is None or name.endswith("attn.qkv.bias"):
            continue
        ours = actual[our_name(name)].double()
        # The rounding of a sum grows with what is summed up, and not with what is left of it.
        size = 1 + ours.abs().sum().item()
        assert abs(ours.sum().item() - total) <= tolerance * size, name
        assert relative(ours.norm().item(), norm) <= tolerance, name


# --- pre-training ----------------------------------------------------------------------------------------------------


def run_steps(recording: Recording, training: Training, tolerance: float = TOLERANCE) -> None:
    """Train through the recorded steps, comparing each, and the checksums where there are any."""
    for number, step in enumerate(recording.steps, start=1):
        training.step = step["position"]  # most steps of the 750 are left out: only the schedule moved in them
        losses = training.train_step([recording.batch(number)], with_statistics=True)
        line = {name: value.item() for name, value in losses.items()}
        line |= {"grad_norm": training.grad_norm.item(), "lr": training.optimizer.param_groups[0]["lr"]}
        check_step(recording, number, line, tolerance)
        assert training.step == step["position"] + 1
        assert all(group["lr"] == line["lr"] for group in training.optimizer.param_groups)
        assert relative(training.statistics["temperature"], step["temp_after"]) <= TOLERANCE
        state = state_of(training.model.state_dict(), training.task.state_dict())
        assert state["queue.queue_ptr"].item() == step["queue_ptr_after"]
        if number in recording.checksums:
            check_sums(recording.checksums[number], state, tolerance)


def test_pre_training(recorded: Callable[..., Recording], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recording = recorded("trajectory")
    training = start(recording, recipe_of(recording, tmp_path), monkeypatch)
    assert training.loader.steps_per_epoch == recording.values["training"]["steps_per_epoch"]
    assert training.total_steps == recording.values["training"]["total_steps"]
    run_steps(recording, training)
    check_tensors(recording, state_of(training.model.state_dict(), training.task.state_dict()))


@pytest.mark.parametrize(("bound", "tolerance"), [("high", TOLERANCE), ("low", 1e-4)])
def test_pre_training_clamps_the_temperature(
    recorded: Callable[..., Recording], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bound: str, tolerance: float
) -> None:
    recording = recorded("trajectory", part=("clamp", bound))
    temperature = recording.values["clamp"][bound]["start_temp"]
    run_steps(recording, start(recording, recipe_of(recording, tmp_path), monkeypatch, None, temperature), tolerance)


def test_retrieval_does_not_clamp_the_temperature(
    recorded: Callable[..., Recording], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recording = recorded("trajectory_retrieval", part=("unclamped",))
    temperature = recording.values["unclamped"]["start_temp"]
    run_steps(recording, start(recording, recipe_of(recording, tmp_path), monkeypatch, None, temperature))


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupted_after", [None, 2])
@pytest.mark.parametrize("case", ["trajectory_retrieval", "trajectory_ve"])
def test_a_whole_run(
    recorded: Callable[..., Recording],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: str,
    interrupted_after: int | None,
) -> None:
    """Loop, log and checkpoints included; also when it is stopped and a new process goes on."""
    recording, run = recorded(case), tmp_path / "run"
    recipe = recipe_of(recording, tmp_path)
    per_epoch = recording.values["training"]["steps_per_epoch"]

    class Stopper(Reporter):
        def stepped(self, step: int) -> None:
            if step == interrupted_after:
                os.kill(os.getpid(), signal.SIGINT)

    training = start(recording, recipe, monkeypatch, Stopper())
    assert training.loader.steps_per_epoch == per_epoch
    monkeypatch.setattr(training.loader, "batches", recorded_batches(recording, per_epoch))
    assert fit(training, run).finished == (interrupted_after is None)
    if interrupted_after:
        training = build_training(recipe, World(), checkpoints(run)[-1])
        replay(recording, training, monkeypatch)
        monkeypatch.setattr(training.loader, "batches", recorded_batches(recording, per_epoch))
        assert training.step == interrupted_after and fit(training, run).finished

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step["step"] for step in recording.steps]
    for number, line in enumerate(lines, start=1):
        check_step(recording, number, line)
    states = {
        int(path.name.removeprefix("step-")): state_of(
            load_file(path / "model.safetensors"), torch.load(path / "train_state.pt", weights_only=True)
        )
        for path in checkpoints(run)
    }
    for number, checksums in recording.checksums.items():
        check_sums(checksums, states[number])
    for step in recording.steps if case == "trajectory_retrieval" else ():
        assert states[step["step"]]["queue.queue_ptr"].item() == step["queue_ptr_after"]
        assert relative(lines[step["step"] - 1]["temperature"], step["temp_after"]) <= TOLERANCE
    check_tensors(recording, states[len(lines)])
