"""Metrics for those who watch elsewhere: TensorBoard always, Weights & Biases and MLflow when asked for.

A tracker is a convenience. One that fails is told of once and left alone; `metrics.jsonl` has everything anyway.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any, Protocol

from tcl.errors import UsageError, without_secrets
from tcl.files.atomic import write_whole
from tcl.report.records import is_figure

PACKAGES = {"wandb": "pip install wandb", "mlflow": "pip install mlflow"}
IDS_FILE = "trackers.json"  # name -> id of the run over there, so that a resumed run goes on in it
PROJECT = "tcl"
WAITING = 1000  # records that a slow tracker may lag behind
LAST_CHANCE = 10.0  # seconds that a slow tracker has when the run ends; who stops it may not wait long
CONNECTING = 30  # seconds to reach Weights & Biases before it writes offline

Warn = Callable[[str], None]


class Tracker(Protocol):
    """Takes the records of `metrics.jsonl` as they are written."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Pass on the figures of a record; its `step` says where they belong."""

    def close(self) -> None:
        """Pass on what is left."""


def check_trackers(names: Sequence[str]) -> None:
    """Fail before anything is built rather than in the middle.

    Raises:
        UsageError: a tracker is unknown, or its package is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"train.track: no tracker {name!r}", hint=f"there are {' and '.join(PACKAGES)}")
        if not _installed(name):
            raise UsageError(f"train.track names {name}, which is not installed", hint=PACKAGES[name])


def open_trackers(
    run: Path, names: Sequence[str], settings: Mapping[str, Any], step: int, warn: Warn = lambda text: None
) -> Trackers:
    """Start, or go on, to report a run.

    Args:
        run: its folder; event files go to `run/tensorboard`.
        names: `wandb`, `mlflow`, or both, beside TensorBoard.
        settings: the recipe, shown beside the curves.
        step: steps that are done already; curves continue from here, and what was drawn past it disappears.
        warn: told, once for each tracker, when it fails.

    Raises:
        UsageError: a package is not installed, or a new run cannot be announced to its server.
    """
    check_trackers(names)
    trackers = Trackers(warn)
    if not _installed("tensorboard"):
        warn("no event files for TensorBoard, as it is not installed: pip install tensorboard")
    else:
        try:
            trackers.add("TensorBoard", _TensorBoard(run / "tensorboard", step))
        except Exception as error:
            warn(f"no event files for TensorBoard: {_first_line(error)}")
    ids = _read_ids(run)
    for name in names:
        known = ids.get(name)
        try:
            opened = _Wandb(run, known, settings, warn) if name == "wandb" else _MLflow(run, known, settings)
        except Exception as error:
            reason = _first_line(error)
            if known is None:
                trackers.close()
                raise UsageError(
                    f"train.track: {name} does not start: {reason}", hint="mend it, or leave it out"
                ) from error
            warn(f"{name} does not go on, the run does: {reason}")
            continue
        ids[name] = opened.id
        trackers.add(name, _InBackground(opened))
    if names:
        write_whole(run / IDS_FILE, json.dumps(ids, indent=2) + "\n")
    return trackers


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder `wandb/` that happens to be here has no origin


def _read_ids(run: Path) -> dict[str, str]:
    try:
        ids = json.loads((run / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in ids.items()} if isinstance(ids, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`train/loss`, `val/r_mean`, ...: what can be drawn over the steps."""
    for key, value in record.items():
        if key != "step" and is_figure(value):
            yield (f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}"), float(value)


class Trackers:
    """Trackers that cannot hurt the run: the first failure of each is told, and it hears no more."""

    def __init__(self, warn: Warn) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._warn = warn

    def add(self, name: str, tracker: Tracker) -> None:
        """Have it hear what is logged from now on."""
        self._trackers[name] = tracker

    def log(self, record: Mapping[str, Any]) -> None:
        """Pass a record on to each."""
        self._each(lambda tracker: tracker.log(record))

    def close(self) -> None:
        """Have each pass on what is left."""
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._trackers[name]
                self._warn(f"{name} failed and gets no more metrics, training goes on: {_first_line(error)}")


class _InBackground:
    """Sends from a thread of its own, so that a slow network never holds up a step, nor the end of the run for long.

    Not by MLflow's own (`synchronous=False`): it keeps the process until a server that hangs has been tried for every
    record, and logs failures without telling them.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._queue: Queue[Mapping[str, Any] | None] = Queue(WAITING)
        self._error: Exception | None = None
        self._thread = Thread(target=self._send, name="tracker", daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        self._raise_if_failed()
        try:
            self._queue.put_nowait(dict(record))
        except Full:
            raise TimeoutError(f"it is {WAITING} records behind") from None

    def close(self) -> None:
        if not self._queue.full():
            self._queue.put_nowait(None)
            self._thread.join(LAST_CHANCE)
        self._raise_if_failed()
        if self._thread.is_alive():
            raise TimeoutError(f"it did not take the last metrics within {LAST_CHANCE:.0f} s")

    def _send(self) -> None:
        try:
            while (record := self._queue.get()) is not None:
                self._tracker.log(record)
            self._tracker.close()
        except Exception as error:
            self._error = error

    def _raise_if_failed(self) -> None:
        if self._error:
            raise self._error


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _figures(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases. Out of its reach it writes to `run/wandb`, for `wandb sync`."""

    def __init__(self, run: Path, known: str | None, settings: Mapping[str, Any], warn: Warn) -> None:
        import wandb

        self.id = known or uuid.uuid4().hex[:8]
        start: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": run.resolve().name,
            "dir": str(run),
            "id": self.id,
            "resume": "allow",
            "config": _shown(settings),
        }
        try:
            self._run = wandb.init(**start, settings=wandb.Settings(init_timeout=CONNECTING))
        except Exception as error:
            wandb.teardown()  # it holds the id of the attempt that failed
            self._run = wandb.init(**start, mode="offline")
            warn(f"wandb is out of reach and writes to {run / 'wandb'}, for `wandb sync`: {_first_line(error)}")

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(dict(_figures(record)), step=record["step"])

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """MLflow, where $MLFLOW_TRACKING_URI points to."""

    def __init__(self, run: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 keep a start waiting for minutes
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient()
        self._drawn = -1  # the last step it has
        if known:
            self._client.set_terminated(known, "RUNNING")
            self._drawn = max((each.step for each in self._client.get_metric_history(known, "train/loss")), default=-1)
            self.id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(number, run_name=run.resolve().name).info.run_id
        params = [Param(key, without_secrets(str(value))[:500]) for key, value in _flat(settings)]
        for start in range(0, len(params), 100):  # more are refused
            self._client.log_batch(self.id, params=params[start : start + 100])

    def log(self, record: Mapping[str, Any]) -> None:
        if record["step"] <= self._drawn:  # a resumed run repeats some steps, with the same figures
            return
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, record["step"]) for name, value in _figures(record)]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _shown(value: Any) -> Any:
    """Settings, without the credentials of URLs in them."""
    if isinstance(value, Mapping):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
