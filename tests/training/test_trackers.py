"""Trackers: curves that continue, packages that are missing, servers that fail; training never stops for them."""

from __future__ import annotations

import json
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tcl.errors import UsageError
from tcl.training import trackers
from tcl.training.trackers import check_trackers, open_trackers


def record(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step} | figures


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="installed for a test")
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class FakeWandb:
    """The part of wandb that is used: keeps what it is given, fails where told to."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.reachable = True
        self.fails_from: int | None = None

    def init(self, **start: Any) -> FakeWandb:
        if not self.reachable and start.get("mode") != "offline":
            raise ConnectionError("no route to host\nand more")
        self.starts.append(start)
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        if self.fails_from is not None and step >= self.fails_from:
            raise OSError("the network is down")
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    install(monkeypatch, "wandb", init=fake.init, Settings=dict, teardown=lambda: None)
    return fake


def test_tensorboard_shows_every_figure(tmp_path: Path) -> None:
    tracker = open_trackers(tmp_path, [], {}, 0)
    tracker.log(record(10, lr=0.5, note="x", flag=True, broken=float("nan"), nothing=None))
    tracker.log({"step": 10, "val_t2i_r1": 30.0})
    tracker.close()
    assert scalars(tmp_path, "train/loss") == [(10, 0.1)]
    assert scalars(tmp_path, "train/lr") == [(10, 0.5)]
    assert scalars(tmp_path, "val/t2i_r1") == [(10, 30.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/lr", "val/t2i_r1"}


def test_a_resumed_curve_does_not_double(tmp_path: Path) -> None:
    for done, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        tracker = open_trackers(tmp_path, [], {}, done)
        for step in steps:
            tracker.log(record(step))
        tracker.close()
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [10, 20, 30, 40]


def test_without_tensorboard_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = trackers.importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    said: list[str] = []
    tracker = open_trackers(tmp_path, [], {}, 0, said.append)
    tracker.log(record(1))
    tracker.close()
    assert len(said) == 1 and "pip install" in said[0]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_at_the_start(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=name) as error:
        open_trackers(tmp_path, [name], {}, 0)
    assert error.value.hint == f"pip install {name}"


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UsageError, match="not installed"):
        check_trackers(["wandb"])


def test_an_unknown_tracker() -> None:
    with pytest.raises(UsageError, match="comet") as error:
        check_trackers(["comet"])
    assert "wandb" in str(error.value.hint)


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, wandb: FakeWandb) -> None:
    for step in (0, 10):
        tracker = open_trackers(tmp_path, ["wandb"], {"optim": {"lr": 1}}, step)
        tracker.log(record(step + 10))
        tracker.close()
    first, second = wandb.starts
    assert first["id"] == second["id"] == json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert first["resume"] == "allow" and first["config"] == {"optim": {"lr": 1}}
    assert wandb.logged == [(10, {"train/loss": 0.1}), (20, {"train/loss": 0.05})] and wandb.finished == 2


def test_wandb_out_of_reach_writes_offline(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.reachable = False
    said: list[str] = []
    open_trackers(tmp_path, ["wandb"], {}, 0, said.append).close()
    assert wandb.starts[0]["mode"] == "offline"
    assert len(said) == 1 and "wandb sync" in said[0] and "no route to host" in said[0] and "\n" not in said[0]


def test_a_tracker_that_fails_is_told_of_once(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.fails_from = 20
    said: list[str] = []
    tracker = open_trackers(tmp_path, ["wandb"], {}, 0, said.append)
    tracker.log(record(10))
    tracker.log(record(20))
    for thread in threading.enumerate():
        if thread.name == "tracker":
            thread.join(5)
    for step in (30, 40):
        tracker.log(record(step))
    tracker.close()
    assert len(said) == 1 and "the network is down" in said[0] and "training goes on" in said[0]
    assert [step for step, _ in wandb.logged] == [10]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [10, 20, 30, 40]  # the other one is unharmed


def test_a_tracker_that_hangs_holds_up_nothing(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "WAITING", 3)
    monkeypatch.setattr(trackers, "LAST_CHANCE", 0.05)
    release = threading.Event()
    monkeypatch.setattr(wandb, "log", lambda figures, step: release.wait(10))
    said: list[str] = []
    tracker = open_trackers(tmp_path, ["wandb"], {}, 0, said.append)
    for step in range(1, 10):
        tracker.log(record(step))
    tracker.close()
    release.set()
    assert len(said) == 1 and "behind" in said[0]


@pytest.mark.parametrize("text", ["", "[1]", '{"wandb": '])
def test_damaged_ids_begin_a_new_run(text: str, tmp_path: Path, wandb: FakeWandb) -> None:
    (tmp_path / "trackers.json").write_text(text)
    open_trackers(tmp_path, ["wandb"], {}, 5).close()
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] == wandb.starts[0]["id"]


class FakeMlflow:
    """A tracking server in memory, with the calls that are used."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.down = False

    def get_experiment_by_name(self, name: str) -> None:
        if self.down:
            raise ConnectionError("connection refused")

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        identity = f"run{len(self.runs)}"
        self.runs[identity] = SimpleNamespace(status="RUNNING", metrics=[], params={})
        return SimpleNamespace(info=SimpleNamespace(run_id=identity))

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run].metrics += metrics
        self.runs[run].params |= {each.key: each.value for each in params}

    def get_metric_history(self, run: str, key: str) -> list[Any]:
        return [each for each in self.runs[run].metrics if each.key == key]

    def set_terminated(self, run: str, status: str = "FINISHED") -> None:
        if self.down:
            raise ConnectionError("connection refused")
        self.runs[run].status = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    def metric(key: str, value: float, timestamp: int, step: int) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value, step=step)

    def param(key: str, value: str) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value)

    fake = FakeMlflow()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    install(monkeypatch, "mlflow", MlflowClient=lambda: fake)
    install(monkeypatch, "mlflow.entities", Metric=metric, Param=param)
    return fake


def test_mlflow_goes_on_in_the_same_run_without_doubling(tmp_path: Path, mlflow: FakeMlflow) -> None:
    settings = {"optim": {f"setting{number}": number for number in range(150)}, "name": "x" * 9000}
    for done, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        tracker = open_trackers(tmp_path, ["mlflow"], settings, done)
        for step in steps:
            tracker.log(record(step))
        tracker.close()
    (run,) = mlflow.runs.values()
    assert [each.step for each in run.metrics] == [10, 20, 30, 40] and run.status == "FINISHED"
    assert run.params["optim.setting7"] == "7" and len(run.params["name"]) == 500 and len(run.params) == 151


def test_mlflow_out_of_reach_stops_a_new_run_but_no_resumed_one(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.down = True
    with pytest.raises(UsageError, match="connection refused"):
        open_trackers(tmp_path, ["mlflow"], {}, 0)
    mlflow.down = False
    open_trackers(tmp_path, ["mlflow"], {}, 0).close()
    mlflow.down = True
    said: list[str] = []
    tracker = open_trackers(tmp_path, ["mlflow"], {}, 10, said.append)
    tracker.log(record(20))
    tracker.close()
    assert len(said) == 1 and "does not go on, the run does" in said[0]
