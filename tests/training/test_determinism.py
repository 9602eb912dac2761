"""One seed gives one result with any number of threads, in every process, interrupted or not.

The model is the smallest whose selected keys and values [B, H, N, Dh] are large enough for torch to use its threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tcl.config.recipe import Recipe
from tcl.distributed.world import World
from tcl.models.attention import KeyValue
from tcl.models.rows import take_rows
from tcl.tasks.build import build_training
from tcl.training.reporter import Reporter
from tcl.weights.files import checkpoints
from tests.conftest import TINY
from tests.tasks.finetuning import TASKS, recipe_for, write_task
from tests.training.test_train import assert_same_run, tiny_recipe

ROOT = Path(__file__).parents[2]
IMAGES, HEADS, TOKENS, WIDTH = 16, 4, 65, 8  # 33,280 numbers; from 32,768 on torch uses its threads

STEPS, STOP = 5, 2

RUN = """
import os, signal, sys
from pathlib import Path
import torch
from tcl.weights.files import checkpoints
from tcl.training.loop import fit
from tcl.training.reporter import Reporter
from tcl.tasks.build import build_training
from tcl.training.trainer import Training
from tests.training.test_determinism import CPU, STOP, threaded_recipe

class Stopper(Reporter):
    def stepped(self, step):
        if step == STOP:
            os.kill(os.getpid(), signal.SIGINT)

folder = Path(sys.argv[1])
for threads in (2, 4):
    torch.set_num_threads(threads)
    for name in sys.argv[2:]:
        run = folder / f"{name}-{threads}"
        last = (checkpoints(run) or [None])[-1]
        fit(build_training(threaded_recipe(), CPU, last, Stopper() if name == "stopped" else None), run)
"""

CPU = World()


def threaded_recipe() -> Recipe:
    """`tiny_recipe` with images of 64 patches in batches of 16."""
    recipe = tiny_recipe(steps=STEPS, checkpoint_every=STEPS)
    arguments = TINY["image_encoder_args"] | {"patch_size": 4}
    model = recipe.model.model_copy(update={"image_encoder_args": arguments})
    data = recipe.data.model_copy(update={"train": ["scenes:train:96"], "batch_size": IMAGES})
    return recipe.model_copy(update={"model": model, "data": data})


def train_in_a_new_process(folder: Path, *names: str) -> None:
    command = [sys.executable, "-c", RUN, str(folder), *names]
    # Threads that wait asleep leave the cores to each other: four of them need not have four.
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_WAIT_POLICY": "passive"}, check=True)


def test_runs_with_two_and_with_four_threads_repeat_bit_for_bit(tmp_path: Path) -> None:
    """One process trains to the end and stops another run early; a new one trains again, and resumes that other run."""
    train_in_a_new_process(tmp_path, "first", "stopped")
    for threads in (2, 4):
        assert [path.name for path in checkpoints(tmp_path / f"stopped-{threads}")] == [f"step-{STOP:08d}"]
    train_in_a_new_process(tmp_path, "second", "stopped")
    for threads in (2, 4):
        assert_same_run(tmp_path / f"second-{threads}", tmp_path / f"first-{threads}")
        assert_same_run(tmp_path / f"stopped-{threads}", tmp_path / f"first-{threads}")


@pytest.fixture
def four_threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


def added_in_turn(gradient: Tensor, rows: Tensor) -> Tensor:
    """The gradient of [B, ...] rows that were taken, added in their order."""
    total = torch.zeros_like(gradient)
    for row, part in zip(rows, gradient, strict=True):
        total[row] += part
    return total


@pytest.mark.usefixtures("four_threads")
def test_the_gradient_of_rows_taken_often_is_added_in_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(IMAGES) % 3  # every one of three images several times
    states, of_key, of_value = torch.randn(3, IMAGES, TOKENS, HEADS, WIDTH, generator=generator)
    key, value = (states.clone().transpose(1, 2).requires_grad_() for _ in range(2))
    for _ in range(20):
        key.grad = value.grad = states.grad = None
        chosen = KeyValue(key, value).select(rows)
        assert torch.equal(chosen.key, key[rows]) and torch.equal(chosen.value, value[rows])
        torch.autograd.backward(chosen, [of_key.transpose(1, 2), of_value.transpose(1, 2)])
        assert key.grad is not None and torch.equal(key.grad.transpose(1, 2), added_in_turn(of_key, rows))
        assert value.grad is not None and torch.equal(value.grad.transpose(1, 2), added_in_turn(of_value, rows))
        take_rows(states.requires_grad_(), rows).backward(of_key)
        assert states.grad is not None and torch.equal(states.grad, added_in_turn(of_key, rows))


class Scattering(TorchDispatchMode):
    """Notes where a float sum is scattered by indices: on a CPU, threads add to it as they come by."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "index_put" in function.name() and len(args) > 3 and args[3]:
            # A mask names no place twice.
            self.shapes += [args[0].shape for index in args[1] if index is not None and index.dtype != torch.bool]
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("task", ["pretrain", *TASKS])
def test_no_task_scatters_gradients(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Gradients of `states[rows]` with numbers for `rows` would be; `take_rows` is what does not."""
    recipe = tiny_recipe() if task == "pretrain" else recipe_for(task, tiny_model_folder, *write_task(tmp_path, task))
    training = build_training(recipe, CPU)
    with Scattering() as scattering:
        training.train_step([next(training.loader.batches(0))])
    assert scattering.shapes == []


def test_the_test_above_sees_what_it_looks_for() -> None:
    states = torch.zeros(3, 2, requires_grad=True)
    with Scattering() as scattering:
        states[torch.tensor([0, 0])].sum().backward()
    assert scattering.shapes == [states.shape]


class Listener(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_run_that_is_resumed_with_other_threads_says_that_digits_will_differ(tmp_path: Path) -> None:
    def resume() -> list[str]:
        listener = Listener()
        build_training(tiny_recipe(), CPU, checkpoint, listener)
        return listener.messages

    checkpoint = build_training(tiny_recipe(), CPU).save(tmp_path)
    assert resume() == []
    meta = json.loads((checkpoint / "meta.json").read_text())
    assert meta["threads"] == 1
    for threads, expected in (3, ["the number of threads is 1 now, and was 3"]), (None, []):  # of an older version
        (checkpoint / "meta.json").write_text(json.dumps(meta | {"threads": threads}))
        assert [message.partition(":")[0] for message in resume()] == expected
