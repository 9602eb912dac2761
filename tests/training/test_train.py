"""Runs from the outside: they learn, they resume exactly, and a kill at any moment loses nothing that was saved."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tcl.config.recipe import Recipe, build_recipe
from tcl.distributed.world import World
from tcl.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from tcl.tasks.build import build_training
from tcl.training.loop import fit
from tcl.training.reporter import Reporter
from tcl.training.runlog import point_latest_at
from tcl.weights.files import checkpoints
from tcl.weights.load import load_model
from tests.conftest import TINY

CPU = World()


def tiny_recipe(**train: Any) -> Recipe:
    return build_recipe(
        {
            "model": TINY,
            "loss": {"queue_size": 13, "momentum": 0.9},
            "optim": {"lr": 1e-3, "warmup_lr": 1e-4, "min_lr": 1e-4, "warmup_steps": 2, "clip_norm": 1.0},
            "data": {"train": ["scenes:train:22"], "batch_size": 4, "workers": 0, "augment": "mild"},
            "train": {"steps": 8, "checkpoint_every": 3, "log_every": 1, "keep": 10} | train,
        }
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocked = ("samples_per_second", "loader_wait")
    return [{key: value for key, value in line.items() if key not in clocked} for line in lines]


def assert_same_run(actual: Path, expected: Path) -> None:
    assert metrics(actual) == metrics(expected)
    last, also_last = checkpoints(actual)[-1], checkpoints(expected)[-1]
    assert last.name == also_last.name
    assert (last / "model.safetensors").read_bytes() == (also_last / "model.safetensors").read_bytes()
    state, other = (torch.load(path / "train_state.pt", weights_only=True) for path in (last, also_last))
    for part in ("teacher", "queue"):
        assert all(torch.equal(state[part][name], other[part][name]) for name in other[part])
    for number, moments in other["optimizer"]["state"].items():
        assert all(torch.equal(state["optimizer"]["state"][number][name], value) for name, value in moments.items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("work") / "runs" / "whole"
    result = fit(build_training(tiny_recipe(), CPU), run)
    assert result.finished and result.step == 8
    return run


def test_run_folder(uninterrupted: Path) -> None:
    assert [path.name for path in checkpoints(uninterrupted)] == [f"step-{step:08d}" for step in (3, 6, 8)]
    assert (uninterrupted.parent / "latest").resolve() == uninterrupted
    assert Recipe.model_validate(yaml.safe_load((uninterrupted / "config.yaml").read_text())) == tiny_recipe()
    model = load_model(uninterrupted)
    weights = load_file(checkpoints(uninterrupted)[-1] / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert load_model(checkpoints(uninterrupted)[0]).model_hash != model.model_hash


def test_two_runs_with_one_seed_are_identical(uninterrupted: Path, tmp_path: Path) -> None:
    fit(build_training(tiny_recipe(), CPU), tmp_path / "again")
    assert_same_run(tmp_path / "again", uninterrupted)


@pytest.mark.parametrize("stop_after", [3, 5])
def test_stopped_and_resumed_equals_never_stopped(uninterrupted: Path, tmp_path: Path, stop_after: int) -> None:
    run = tmp_path / "run"

    class Stopper(Reporter):
        def stepped(self, step: int) -> None:
            if step == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

    result = fit(build_training(tiny_recipe(), CPU, reporter=Stopper()), run)
    assert not result.finished and result.step == stop_after
    assert not (run / "model").exists()
    result = fit(build_training(tiny_recipe(), CPU, checkpoints(run)[-1]), run)
    assert result.finished
    assert_same_run(run, uninterrupted)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_train import CPU, tiny_recipe
from tcl.files import atomic
from tcl.weights.files import checkpoints
from tcl.training.reporter import Reporter
from tcl.training.loop import fit
from tcl.tasks.build import build_training
from tcl.training.trainer import Training

where, run = sys.argv[1], Path(sys.argv[2])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

class Killer(Reporter):
    def stepped(self, step):
        if where == "between checkpoints" and step == 5:
            kill()

count = 0
def killing_sync(path):
    global count
    count += path.name == "train_state.pt"
    if where == "while a checkpoint is written" and count == 2:
        path.write_bytes(b"half")
        kill()

atomic._sync = killing_sync
last = (checkpoints(run) or [None])[-1]
fit(build_training(tiny_recipe(), CPU, last, Killer()), run)
"""


@pytest.mark.parametrize("where", ["between checkpoints", "while a checkpoint is written"])
def test_killed_and_resumed_equals_never_stopped(uninterrupted: Path, tmp_path: Path, where: str) -> None:
    run = tmp_path / "run"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED_RUN, where, str(run)]
    killed = subprocess.run(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoints(run)] == ["step-00000003"]
    fit(build_training(tiny_recipe(), CPU, checkpoints(run)[-1]), run)
    assert_same_run(run, uninterrupted)
    assert not list((run / "checkpoints").glob(".*"))


def test_resume_refuses_another_model(uninterrupted: Path) -> None:
    recipe = tiny_recipe()
    larger = recipe.model_copy(update={"model": recipe.model.model_copy(update={"embed_dim": 32})})
    with pytest.raises(ConfigError, match=r"model.embed_dim is 32 now, but 16"):
        build_training(larger, CPU, checkpoints(uninterrupted)[0])


def test_a_batch_of_one_and_a_data_set_smaller_than_a_batch(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=2)
    for name, changes in {"one": {"batch_size": 1}, "few": {"train": ["scenes:train:3"], "batch_size": 64}}.items():
        data = recipe.data.model_copy(update=changes)
        fit(build_training(recipe.model_copy(update={"data": data}), CPU), tmp_path / name)
        assert all(torch.isfinite(torch.tensor(line["loss"])) for line in metrics(tmp_path / name))


@pytest.mark.parametrize(
    ("weight", "precision"),
    [("itm_head.weight", "fp32"), ("itm_head.weight", "fp16"), ("visual_encoder.blocks.0.mlp.fc1.weight", "fp32")],
)
def test_nonfinite_loss_stops_before_the_update_and_names_the_samples(
    tmp_path: Path, weight: str, precision: str
) -> None:
    training = build_training(tiny_recipe(precision=precision), CPU)
    training.train_step([next(training.loader.batches(0))])
    with torch.no_grad():
        training.model.get_parameter(weight)[0, 0] = float("inf")
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"not finite between steps 1 and 2; .*scenes:train:0:\d+") as caught:
        fit(training, run)
    layer = weight.removesuffix(".weight").removesuffix(".mlp.fc1")  # a block computes its own feed-forward half
    assert f"the layer {layer}. Every sample of the batch does it" in caught.value.message
    for name, parameter in training.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    named = (run / "nonfinite_samples.json").read_text()
    samples = json.loads(named)["samples"]
    assert json.loads(named)["step"] == 2 and '\n  "samples": [' in named  # for people
    assert len(samples) >= 4 and all(sample.startswith("scenes:train:0:") for sample in samples)
    assert not checkpoints(run)


def test_a_single_sample_that_makes_the_loss_infinite_is_named(tmp_path: Path) -> None:
    """With the layer where it begins, the first loss term it reaches, and its name alone among those of the batch."""
    training = build_training(tiny_recipe(), CPU)
    batch = next(training.loader.batches(0))
    bad, marked = batch.sample_ids[2], batch.images[2].clone()

    def poison(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        pixels = training.model.normalise_pixels(marked)
        same = (inputs[0] - pixels).abs().amax((1, 2, 3)) == 0
        return torch.where(same[:, None, None], math.inf, output)

    training.model.visual_encoder.patch_embed.register_forward_hook(poison)
    with pytest.raises(NonFiniteError) as caught:
        fit(training, tmp_path / "run")
    assert "not finite: the loss term cma_i2t and the layer visual_encoder.patch_embed" in caught.value.message
    assert f"It comes of {bad}. Samples: " in caught.value.message
    written = json.loads((tmp_path / "run" / "nonfinite_samples.json").read_text())
    assert written["alone"] == [bad] and written["term"] == "cma_i2t" and len(written["samples"]) == 4


def test_a_learning_rate_far_above_the_usual_is_said_as_the_cause(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    optim = recipe.optim.model_copy(update={"lr": 1e30, "warmup_steps": 0, "clip_norm": None})
    with pytest.raises(NonFiniteError) as caught:
        fit(build_training(recipe.model_copy(update={"optim": optim}), CPU), tmp_path / "run")
    assert str(caught.value.hint).startswith("likely because optim.lr=1e+30 is far above the usual 1e-05 to 0.001")


def test_settings_that_may_change_on_resume_do(uninterrupted: Path) -> None:
    recipe = tiny_recipe()
    optim = recipe.optim.model_copy(update={"weight_decay": 0.5, "lr": 1e-2})
    training = build_training(recipe.model_copy(update={"optim": optim}), CPU, checkpoints(uninterrupted)[0])
    training.train_step([next(training.loader.batches(0))])
    assert [group["weight_decay"] for group in training.optimizer.param_groups] == [0.0, 0.5]
    assert training.optimizer.param_groups[0]["lr"] > 5e-3


def test_validation_images_are_looked_at_before_training(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text('{"image": "gone.png", "caption": "a thing"}\n')
    recipe = tiny_recipe()
    data = recipe.data.model_copy(update={"val": [str(tmp_path / "val.jsonl")]})
    with pytest.raises(DataError, match=r"validation: none of the first 1 images .*gone.png"):
        build_training(recipe.model_copy(update={"data": data}), CPU)


def test_latest_points_at_runs_and_never_at_itself(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    point_latest_at(run)
    point_latest_at(tmp_path / "runs" / "latest")
    assert (tmp_path / "runs" / "latest").resolve() == run
    (tmp_path / "elsewhere").mkdir()
    point_latest_at(tmp_path / "elsewhere")
    assert not (tmp_path / "latest").exists()


def test_checkpoints_beyond_keep_are_deleted(tmp_path: Path) -> None:
    fit(build_training(tiny_recipe(keep=1), CPU), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000008"]


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    save = torch.save

    def full(state: Any, path: Path) -> None:
        if len(checkpoints(run)) == 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints are intact") as error:
        fit(build_training(tiny_recipe(), CPU), run)
    assert "--resume" in str(error.value.hint)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]


def test_an_unreadable_image_is_replaced_and_listed(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a red picture\n")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    recipe = tiny_recipe(steps=2)
    data = recipe.data.model_copy(update={"train": [str(tmp_path)]})
    run, written = tmp_path / "run", []

    class Watcher(Reporter):
        def stepped(self, step: int) -> None:
            written.append((run / "bad_samples.jsonl").is_file())

    fit(build_training(recipe.model_copy(update={"data": data}), CPU, reporter=Watcher()), run)
    bad = [json.loads(line) for line in (run / "bad_samples.jsonl").read_text().splitlines()]
    assert {Path(line["image"]).name for line in bad} == {"b.png"} and all(line["reason"] for line in bad)
    assert [line["step"] for line in bad] == [1, 2] and written == [False, True]


def test_it_learns() -> None:
    """Four pairs are learned by heart, and every parameter has moved."""
    recipe = tiny_recipe(steps=150)
    data = recipe.data.model_copy(update={"train": ["scenes:train:4"]})
    optim = recipe.optim.model_copy(update={"lr": 5e-3})
    loss = recipe.loss.model_copy(update={"queue_size": 1})  # a longer one would hold the four as their own negatives
    training = build_training(recipe.model_copy(update={"data": data, "optim": optim, "loss": loss}), CPU)
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    losses = [training.train_step([batch]) for epoch in range(150) for batch in training.loader.batches(epoch)]
    first, last = (torch.stack([step["cma_t2i"] for step in part]).mean() for part in (losses[:5], losses[-5:]))
    assert last < 0.5 * first
    assert all(not torch.equal(p, before[name]) for name, p in training.model.named_parameters())
