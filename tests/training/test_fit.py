"""Runs under the settings that make them fit and last: each resumes exactly, and what they report is true."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from tcl.config.recipe import Recipe
from tcl.distributed.share import Share
from tcl.distributed.world import World
from tcl.errors import ConfigError, NonFiniteError, UsageError
from tcl.machine.seeding import mix
from tcl.report.records import read_records
from tcl.tasks.build import build_training
from tcl.training import upload
from tcl.training.loop import fit
from tcl.training.preflight import is_finished
from tcl.training.reporter import Reporter
from tcl.training.trainer import Training
from tcl.weights.files import checkpoints
from tcl.weights.load import load_model
from tests.slow_files import SlowFiles, slow_storage
from tests.training.test_train import assert_same_run, metrics, tiny_recipe

ALONE = World()


class Listener(Reporter):
    """Hears warnings, and sends a signal after a step."""

    def __init__(self, stop_after: int = 0, number: int = signal.SIGINT) -> None:
        self.stop_after, self.number = stop_after, number
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stepped(self, step: int) -> None:
        if step == self.stop_after:
            os.kill(os.getpid(), self.number)


def with_data(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


@pytest.fixture
def slow() -> Iterator[type[SlowFiles]]:
    with slow_storage() as files:
        yield files


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 2},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"activation_checkpointing": True},
        {"freeze": ["image_encoder"], "lora": ["text_encoder", "fusion_encoder"], "lora_rank": 2},
    ],
    ids=["accumulate", "bf16", "fp16", "checkpointing", "freeze and LoRA"],
)
def test_each_setting_trains_and_resumes_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = with_data(tiny_recipe(steps=4, checkpoint_every=10, **settings), workers=1)
    fit(build_training(recipe, ALONE), tmp_path / "whole")
    fit(build_training(recipe, ALONE, reporter=Listener(stop_after=2)), tmp_path / "halves")
    (checkpoint,) = checkpoints(tmp_path / "halves")
    assert checkpoint.name == "step-00000002"
    fit(build_training(recipe, ALONE, checkpoint), tmp_path / "halves")
    halves, whole = checkpoints(tmp_path / "halves"), checkpoints(tmp_path / "whole")
    assert halves[-1].name == whole[-1].name
    assert_same_run(tmp_path / "halves", tmp_path / "whole")
    assert not multiprocessing.active_children()  # who read the data
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "whole"))


def test_lora_trains_little_and_saves_an_ordinary_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=3, lora=["image_encoder", "text_encoder", "fusion_encoder"], lora_rank=2)
    training = build_training(recipe, ALONE)
    trained = sum(p.numel() for group in training.optimizer.param_groups for p in group["params"])
    assert trained < 0.5 * sum(p.numel() for p in training.model.parameters())
    fit(training, tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert type(model.visual_encoder.blocks[0].attn.qkv) is torch.nn.Linear
    batch = training.task.synthetic_batch(2)
    with torch.no_grad():
        expected = training.model.eval().encode_image(batch.images).image_feat
        torch.testing.assert_close(model.encode_image(batch.images).image_feat, expected)


def test_frozen_encoders_do_not_move(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=2, freeze=["image_encoder", "text_encoder"])
    training = build_training(recipe, ALONE)
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    fit(training, tmp_path / "run")
    moved = {name for name, p in training.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any(name.startswith("visual_encoder.") for name in moved)
    assert not any("layer.0." in name or "embeddings" in name for name in moved)
    assert {"vision_proj.weight", "itm_head.weight"} <= moved


def test_another_adaptation_is_no_resume(tmp_path: Path) -> None:
    fit(build_training(tiny_recipe(steps=1), ALONE), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.freeze is \[image_encoder\]"):
        build_training(tiny_recipe(steps=2, freeze=["image_encoder"]), ALONE, checkpoints(tmp_path / "run")[-1])


def test_a_checkpoint_of_an_older_version_counts_new_settings_as_defaults(tmp_path: Path) -> None:
    fit(build_training(tiny_recipe(steps=1), ALONE), tmp_path / "run")
    meta = checkpoints(tmp_path / "run")[-1] / "meta.json"
    content = json.loads(meta.read_text())
    for section, key in (("model", "init"), ("train", "freeze"), ("train", "lora_rank"), ("data", "augment")):
        del content["recipe"][section][key]
    meta.write_text(json.dumps(content))
    listener = Listener()
    assert build_training(tiny_recipe(steps=2), ALONE, checkpoints(tmp_path / "run")[-1], listener).step == 1
    assert [message for message in listener.messages if "data.augment" in message]  # mild here, published by default


def test_sigterm_saves_and_says_which_signal_it_was(tmp_path: Path) -> None:
    result = fit(build_training(tiny_recipe(steps=9), ALONE, reporter=Listener(2, signal.SIGTERM)), tmp_path / "run")
    assert (result.signal, result.step, result.finished) == (signal.SIGTERM, 2, False)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert "<img" not in (tmp_path / "run" / "report.html").read_text()  # there was no time for samples


@pytest.mark.parametrize("at", [2, 4], ids=["midway", "last"])
def test_sigterm_cuts_a_long_validation_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The run saves at once, and the validation is done when it is resumed, so that nothing is missing in the end."""
    recipe = with_data(tiny_recipe(steps=4, eval_every=2, checkpoint_every=100), val=["scenes:val:4"])
    fit(build_training(recipe, ALONE), tmp_path / "whole")
    training = build_training(recipe, ALONE)
    whole = training.task.validate

    def long(share: Share) -> dict[str, float]:
        if training.step == at:
            with share.agree():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)  # who is not woken finishes the validation, which shows below
        return whole(share)

    monkeypatch.setattr(training.task, "validate", long)
    result = fit(training, tmp_path / "run")
    assert (result.signal, result.step, result.finished) == (signal.SIGTERM, at, False)
    assert not (tmp_path / "run" / "model").exists()
    resumed = fit(build_training(recipe, ALONE, checkpoints(tmp_path / "run")[-1]), tmp_path / "run")
    assert resumed.finished
    of_both = [
        [{key: line[key] for key in ("step", "val_r_mean")} for line in metrics(tmp_path / run) if "val_r_mean" in line]
        for run in ("whole", "run")
    ]
    assert of_both[0] == of_both[1] and [line["step"] for line in of_both[0]] == [2, 4]


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    class Second(Reporter):
        def stepped(self, step: int) -> None:
            if step == 1:
                with pytest.raises(UsageError, match="another process trains in this folder") as caught:
                    fit(build_training(tiny_recipe(steps=1), ALONE), tmp_path / "run")
                refused.append(str(caught.value))

    fit(build_training(tiny_recipe(steps=2), ALONE, reporter=Second()), tmp_path / "run")
    assert len(refused) == 1
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_the_best_model_is_kept_and_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([10.0, 30.0, 20.0, 25.0])
    recipe = with_data(tiny_recipe(steps=4, eval_every=1, checkpoint_every=2, select="best"), val=["scenes:val:4"])

    def run(training: Training) -> None:
        monkeypatch.setattr(training.task, "validate", lambda share: {"r_mean": next(values)})
        fit(training, tmp_path / "run")

    run(build_training(recipe, ALONE, reporter=Listener(stop_after=2)))
    run(build_training(recipe, ALONE, checkpoints(tmp_path / "run")[-1]))  # knows that 25 is not the best
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {"step": 2, "metric": "r_mean", "value": 30.0}
    second = load_file(checkpoints(tmp_path / "run")[0] / "model.safetensors")
    chosen = load_model(tmp_path / "run").state_dict()
    assert all(torch.equal(chosen[name], tensor) for name, tensor in second.items())


def test_checkpoints_and_model_are_uploaded(tmp_path: Path) -> None:
    fit(build_training(tiny_recipe(steps=2, upload="memory://copies/run"), ALONE), tmp_path / "run")
    files = fsspec.filesystem("memory")
    for name in ("step-00000002", "model"):
        assert files.exists(f"/copies/run/{name}/model.safetensors")


def test_a_run_leaves_a_report_and_event_files(tmp_path: Path) -> None:
    fit(build_training(tiny_recipe(steps=2), ALONE), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "cma_i2t" in page and "scenes:train:22" in page and "<img" in page
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize("killed_after", [4, 5])
def test_a_best_model_past_the_checkpoint_of_a_killed_run_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    """The checkpoint is of step 3, and the best model of step 4: with or without a worse one behind it."""
    values = {1: 30.0, 2: 10.0, 3: 20.0, 4: 40.0, 5: 35.0, 6: 25.0}
    settings = {"eval_every": 1, "checkpoint_every": 3, "select": "best", "patience": 4}
    recipe = with_data(tiny_recipe(steps=6, **settings), val=["scenes:val:4"])

    class Killed(BaseException):
        pass

    class Killer(Reporter):
        def logged(self, record: Any) -> None:
            if "loss" in record and record["step"] == killed_after + 1:
                raise Killed

    def run(folder: Path, checkpoint: Path | None = None, reporter: Reporter | None = None) -> None:
        training = build_training(recipe, ALONE, checkpoint, reporter)
        monkeypatch.setattr(training.task, "validate", lambda share: {"r_mean": values[training.step]})
        fit(training, folder)

    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", reporter=Killer())
    assert json.loads((tmp_path / "killed" / "best.json").read_text())["step"] == 4
    run(tmp_path / "killed", checkpoints(tmp_path / "killed")[-1])
    for name in ("best.json", "best/model.safetensors", "model/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_run_that_gave_up_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_data(tiny_recipe(steps=9, eval_every=1, patience=1, select="best"), val=["scenes:val:4"])
    training = build_training(recipe, ALONE)
    monkeypatch.setattr(training.task, "validate", lambda share: {"r_mean": 30.0 - training.step})
    run = tmp_path / "run"
    assert fit(training, run).step == 2
    last = checkpoints(run)[-1]
    assert is_finished(run, last, recipe)
    patient = recipe.train.model_copy(update={"patience": 2})
    assert not is_finished(run, last, recipe.model_copy(update={"train": patient}))
    short = recipe.train.model_copy(update={"patience": 2, "steps": 2})
    assert is_finished(run, last, recipe.model_copy(update={"train": short}))
    (run / "model" / "config.json").unlink()
    assert not is_finished(run, last, recipe)


def test_a_checkpoint_that_is_being_copied_is_kept_until_it_is(tmp_path: Path, slow: type[SlowFiles]) -> None:
    run, kept = tmp_path / "run", []

    class Watcher(Reporter):
        def stepped(self, step: int) -> None:
            kept.append([path.name[-1] for path in checkpoints(run)])
            if step == 4:
                slow.go.set()

    recipe = tiny_recipe(steps=4, checkpoint_every=1, keep=1, upload="slow://bucket/run")
    fit(build_training(recipe, ALONE, reporter=Watcher()), run)
    assert kept == [[], ["1"], ["1", "2"], ["1", "3"]]  # what is copied, and the newest
    assert [path.name[-1] for path in checkpoints(run)] == ["4"]
    whole = {Path(path).parent.name for path in slow.store if path.endswith("config.json")}
    assert whole >= {"step-00000001", "step-00000004", "model"} and "step-00000002" not in whole


def test_sigterm_does_not_wait_for_a_slow_copy(
    tmp_path: Path, slow: type[SlowFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "HURRIED", 0.2)
    listener = Listener(2, signal.SIGTERM)
    result = fit(
        build_training(tiny_recipe(steps=9, upload="slow://bucket"), ALONE, reporter=listener), tmp_path / "run"
    )
    assert result.signal == signal.SIGTERM
    assert "not copied to slow://bucket in time, but kept here: step-00000002" in listener.messages


def test_health_is_logged(tmp_path: Path) -> None:
    recipe = with_data(tiny_recipe(steps=3), train=["scenes:train:4"])
    listener = Listener()
    fit(build_training(recipe, ALONE, reporter=listener), tmp_path / "run")
    line = metrics(tmp_path / "run")[-1]
    assert line["queue_age"] == 13 / 4 and 0 < line["image_feat_std"] < 2 and 0 < line["text_feat_std"] < 2
    assert 0 < read_records(tmp_path / "run" / "metrics.jsonl")[-1]["loader_wait"] < 1
    assert 0.001 <= line["temperature"] <= 0.5 and line["grad_norm"] > 0 and 0 <= line["duplicate_negatives"] <= 1


@pytest.mark.parametrize(("precision", "step"), [("fp32", 1), ("fp16", 2)])
def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path, precision: str, step: int) -> None:
    """At once; in fp16 the scale of the loss may be what makes it so, until the scale is used up."""
    training = build_training(tiny_recipe(steps=20, log_every=20, checkpoint_every=20, precision=precision), ALONE)
    if precision == "fp16":
        training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with torch.no_grad():  # a gradient that is infinite whatever the scale, of a loss that is finite
        training.model.temp.register_hook(lambda grad: torch.full_like(grad, math.inf))
    before = training.model.vision_proj.weight.clone()
    with pytest.raises(NonFiniteError, match=f"the loss or its gradient is not finite at step {step};") as caught:
        fit(training, tmp_path / "run")
    assert "The first that is not finite: the gradient of temp. " in caught.value.message
    assert torch.equal(training.model.vision_proj.weight, before)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_the_precision_acts_in_training_and_in_validation(tmp_path: Path, precision: str) -> None:
    recipe = with_data(tiny_recipe(steps=1), val=["scenes:val:2"])
    training = build_training(
        recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})}), ALONE
    )
    if precision == "fp16":
        training.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # the usual one overflows here
    seen: set[tuple[bool, torch.dtype]] = set()

    def look(module: torch.nn.Module, _: Any) -> None:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        seen.add((module.training, dtype))

    training.model.visual_encoder.patch_embed.register_forward_pre_hook(look)
    fit(training, tmp_path / "run")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    assert seen == {(True, dtype), (False, dtype)}
    line = metrics(tmp_path / "run")[0]
    assert line.get("loss_scale") == (1024 if precision == "fp16" else None)
    plain = build_training(recipe, ALONE)
    plain.train_step([next(plain.loader.batches(0))])
    assert line["grad_norm"] == pytest.approx(plain.grad_norm.item(), rel=0.1)


def test_the_scale_of_the_loss_goes_on(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=2, precision="fp16")
    training = build_training(recipe, ALONE)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    training.scaler.scale(torch.ones(()))
    assert build_training(recipe, ALONE, training.save(tmp_path / "fp16")).scaler.get_scale() == 512
    other = build_training(tiny_recipe(steps=2, precision="bf16"), ALONE).save(tmp_path / "bf16")
    assert build_training(recipe, ALONE, other).scaler.get_scale() == 65536  # as of a new one


def test_losses_are_means_over_the_passes_of_a_step() -> None:
    training = build_training(tiny_recipe(accumulate=2), ALONE)
    of_passes: list[Any] = []
    training.objective.register_forward_hook(lambda module, inputs, outputs: of_passes.append(outputs[0].named()))
    batches = training.loader.batches(0)
    losses = training.train_step([next(batches), next(batches)])
    assert training.statistics == {} and set(losses) == set(of_passes[0]) and "loss" in losses
    for name, value in losses.items():
        first, second = (of_pass[name].item() for of_pass in of_passes)
        assert value.item() == pytest.approx((first + second) / 2) and first != second


def test_a_report_is_there_from_the_first_checkpoint_on(tmp_path: Path) -> None:
    run, there = tmp_path / "run", []

    class Watcher(Reporter):
        def stepped(self, step: int) -> None:
            there.append((run / "report.html").is_file() and "<img" in (run / "report.html").read_text())

    fit(build_training(tiny_recipe(steps=3, checkpoint_every=1, log_every=3), ALONE, reporter=Watcher()), run)
    assert there == [False, True, True]


def test_a_report_that_cannot_be_written_is_no_end(tmp_path: Path) -> None:
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    listener = Listener()
    assert fit(build_training(tiny_recipe(steps=1), ALONE, reporter=listener), tmp_path / "run").finished
    assert [text.startswith("report.html was not written: ") for text in listener.messages] == [True]


def test_the_footprint_is_measured_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory at two small batches, time at that of the run."""
    recipe = with_data(tiny_recipe(steps=2), batch_size=6)
    first, second = build_training(recipe, ALONE), build_training(recipe, ALONE)
    told: list[Any] = []
    noise = first.task.synthetic_batch
    monkeypatch.setattr(first.task, "synthetic_batch", lambda size: told.append(size) or noise(size))
    gradients = first.model.temp.register_post_accumulate_grad_hook(lambda _: told.append("backward"))
    first.footprint(lambda: told.append("progress"))
    assert told == [event for size in (2, 2, 4, 4, 4, 6, 6) for event in (size, "backward", "progress")]
    gradients.remove()
    losses = [training.train_step([next(training.loader.batches(0))])["loss"] for training in (first, second)]
    assert torch.equal(*losses)
    queues = [training.task.state_dict()["queue"] for training in (first, second)]
    assert all(torch.equal(queues[0][name], queues[1][name]) for name in queues[0])


class OneOfTwo(World):
    """The second of two processes; the first is only imagined."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, rows])

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        return value


class Wrapped(torch.nn.Module):
    """In place of `DistributedDataParallel`: notes whether gradients would travel."""

    def __init__(self, objective: torch.nn.Module) -> None:
        super().__init__()
        self.objective, self.silent = objective, False
        self.travelled: list[bool] = []

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.silent = True
        yield
        self.silent = False

    def forward(self, *arguments: Any) -> Any:
        self.travelled.append(not self.silent)
        return self.objective(*arguments)


@pytest.mark.parametrize("passes", [1, 3])
def test_one_of_two_processes(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients travel with the last pass of a step, and it draws what one process would in every second pass."""
    training = build_training(tiny_recipe(), ALONE)
    training.world, training.step = OneOfTwo(rank=1, size=2), 4
    training.objective = wrapped = Wrapped(training.objective)
    losses, seeds = training.task.losses, list[int]()
    monkeypatch.setattr(training.task, "losses", lambda *rest: seeds.append(rest[-1]) or losses(*rest))
    training.train_step([next(training.loader.batches(0))] * passes)
    assert wrapped.travelled == [False] * (passes - 1) + [True]
    assert seeds == [mix(training.recipe.train.seed, 4, slice_) for slice_ in (1, 3, 5)[:passes]]


def test_a_batch_too_large_for_the_device_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    training = build_training(tiny_recipe(), ALONE)
    monkeypatch.setattr(training.task, "losses", full)
    with pytest.raises(ConfigError, match="does not fit into the memory of cpu"):
        training.footprint()
