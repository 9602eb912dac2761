"""Several processes compute what one does, end together, and come back after one of them was lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tcl.distributed.world import Agreement, World, _lost_peer
from tcl.tasks.build import build_training
from tcl.training.loop import fit
from tcl.weights.files import checkpoints
from tests.distributed.ranks import run_ranks
from tests.training.test_train import metrics, tiny_recipe

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, shutil, signal, sys
import torch
torch.set_num_threads(1)
from tcl_cli import main
from tcl_cli.train import run_reporter

plan = os.environ.get("PLAN", "")
rank, restart = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
stepped = run_reporter.ConsoleReporter.stepped

def act(self, step):
    stepped(self, step)
    if plan == "kill one" and rank == 1 and restart == 0 and step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "terminate" and rank == 1 and step == 2:
        os.kill(os.getpid(), signal.SIGTERM)  # as of a scheduler that stops one machine first

run_reporter.ConsoleReporter.stepped = act
code = main.run(sys.argv[1:])
if plan == "again from step 1":
    if rank == 0:
        shutil.copytree("run", "resumed")
        for name in ("checkpoints/step-00000002", "checkpoints/step-00000003", "model"):
            shutil.rmtree("resumed/" + name)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"  # as after a lost process
    code = main.run(["resumed" if argument == "run" else argument for argument in sys.argv[1:]])
sys.exit(code)
"""


def command_line(**train: object) -> list[str]:
    """A script that runs the command, in the working folder."""
    Path("script.py").write_text(SCRIPT)
    Path("recipe.yaml").write_text(tiny_recipe(**train).to_yaml())
    return ["script.py", "pretrain", "recipe.yaml", "--out", "run"]


def torchrun(plan: str, restarts: int = 0, **train: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), *command_line(**train)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PLAN": plan}
    return subprocess.run(command, env=environment, text=True, capture_output=True)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_same_state(run: Path, other: Path) -> None:
    last, also_last = checkpoints(run)[-1], checkpoints(other)[-1]
    assert last.name == also_last.name
    weights, expected = (load_file(path / "model.safetensors") for path in (last, also_last))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    state, expected_state = (torch.load(path / "train_state.pt", weights_only=True) for path in (last, also_last))
    for part in ("teacher", "queue"):
        assert all(torch.equal(state[part][name], tensor) for name, tensor in expected_state[part].items())


def test_two_ranks_equal_one_with_two_forward_passes(tmp_path: Path) -> None:
    done = run_ranks(2, *command_line(steps=4, checkpoint_every=2), "data.workers=1")
    assert done.returncode == 0, done.stderr
    fit(build_training(tiny_recipe(steps=4, checkpoint_every=2, accumulate=2), World()), tmp_path / "alone")
    assert_same_state(tmp_path / "run", tmp_path / "alone")
    # Losses are means over ranks, whose sums are taken in another order.
    for line, expected in zip(metrics(tmp_path / "run"), metrics(tmp_path / "alone"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert line["samples"] == expected["samples"] == 8 * line["step"]
    assert done.stderr.count("Finished: run/model") == 1  # one voice, one log


def test_three_ranks_with_any_number_of_pairs_and_workers_resume_exactly(tmp_path: Path) -> None:
    """With three, the last bits of a gradient depend on where DDP has put it."""
    few = ("data.workers=2", "data.train=['scenes:train:5']")
    done = run_ranks(3, *command_line(steps=3, checkpoint_every=1), *few, PLAN="again from step 1")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[-1]["samples"] == 9  # 5 pairs for 3 processes: one each per step
    assert "Continuing resumed at step 1." in done.stderr
    assert_same_state(tmp_path / "resumed", tmp_path / "run")


def test_a_lost_rank_ends_the_job_and_a_restart_continues_it(tmp_path: Path) -> None:
    done = torchrun("kill one", restarts=1, steps=8, checkpoint_every=3, log_every=1)
    assert done.returncode == 0, done.stderr
    assert "another process of this run has ended" in done.stderr
    assert "Continuing run at step 3." in done.stderr
    fit(build_training(tiny_recipe(steps=8, checkpoint_every=3, accumulate=2), World()), tmp_path / "alone")
    assert_same_state(tmp_path / "run", tmp_path / "alone")


def test_pre_emption_saves_and_ends_well(tmp_path: Path) -> None:
    done = torchrun("terminate", steps=50, checkpoint_every=40)
    assert done.returncode == 0, done.stderr
    assert "Told to end by SIGTERM at step 3" in done.stderr  # both ranks at the same step, one after the signal
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]


def test_only_the_first_rank_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({}))
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    done = run_ranks(2, *command_line(steps=2))
    assert done.returncode != 0
    assert done.stderr.count("Error: run exists") == 1


def test_alone_everything_is_the_identity() -> None:
    world = World()
    features = torch.rand(3, 2)
    assert world.gather(features) is features and world.mean(features) is features
    assert world.collect(1) == [1] and world.from_main("a") == "a"
    with world.main_first():
        pass
    agreed = Agreement(world)
    assert agreed(0) == 0 and agreed(signal.SIGTERM) == signal.SIGTERM and agreed.close() == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            "[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 86400000ms for recv operation to complete",
            "process 1 of 2: no word from another process of this run for 24 hours",
        ),
        (
            "[../gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:41899. Check its logs",
            "process 1 of 2: another process of this run has ended, so this one ends too",
        ),
        ("The operation on the hub timed out", None),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_an_error_says_about_the_others(error: str, expected: str | None) -> None:
    """Messages as torch 2.15 raises them."""
    lost = _lost_peer(World("cpu", 1, 2), RuntimeError(error))
    assert (lost.message if lost else None) == expected
    assert lost is None or "--resume" in str(lost.hint)
