"""A run from its first step to its last: the loop, and what it logs, saves, validates and reports on the way."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tcl.distributed.share import Share
from tcl.distributed.world import Agreement
from tcl.errors import NonFiniteError, TclError
from tcl.files.atomic import write_whole
from tcl.files.locks import BEGUN_FILE, hold_run
from tcl.machine.signals import Stopped, StopRequest
from tcl.report.page import write_report
from tcl.report.records import read_records
from tcl.training.checkpoint import prune_checkpoints
from tcl.training.diagnosis import USUAL_LR, Cause, find_cause, lr_is_far_off
from tcl.training.health import HealthMonitor
from tcl.training.preflight import BEST_FILE, BEST_FOLDER, METRICS_FILE, count_stale, read_best
from tcl.training.runlog import RunLog, point_latest_at
from tcl.training.trackers import open_trackers
from tcl.training.trainer import Training
from tcl.training.upload import Uploader
from tcl.weights.model_folder import load_model_folder, save_model


@dataclass
class TrainResult:
    """How a run ended.

    Attributes:
        run: its folder.
        step: steps done.
        finished: False when it was told to stop; it can be resumed.
        signal: the signal that told it to, else 0.
    """

    run: Path
    step: int
    finished: bool
    signal: int


def fit(training: Training, run: Path, *, held: bool = False) -> TrainResult:
    """Train to the end, or until SIGINT or SIGTERM, which save first.

    Args:
        training: new, or restored from a checkpoint of `run`.
        run: its folder.
        held: this process holds the folder already.

    Raises:
        NonFiniteError: a loss or gradient stopped being finite.
        UsageError: another process trains in this folder.
        CheckpointError: a checkpoint cannot be written.
    """
    recipe, told = training.recipe.train, 0
    eval_every = recipe.eval_every or training.loader.steps_per_epoch
    with StopRequest() as stop, _Fit(training, run, stop, held) as this:
        agreed = Agreement(training.world)
        if this.owes_validation(eval_every):
            told = this.validate()
        while not this.ended and not told:
            for batches in this.batches_of_steps():
                finished = training.step + 1 >= training.total_steps
                logs = finished or (training.step + 1) % recipe.log_every == 0
                losses = training.train_step(batches, with_statistics=logs)
                training.reporter.stepped(training.step)
                told = agreed(stop.signal)
                saves = finished or told or training.step % recipe.checkpoint_every == 0
                if training.device.type == "cpu" or logs or saves:
                    this.raise_if_nonfinite()
                if logs or saves:
                    this.log_bad_samples()
                if logs:
                    this.log(losses)
                if saves:  # before validation, which may fail
                    this.save()
                due = finished or (training.step % eval_every == 0 and not told)  # who is told to go goes now
                if training.task.validates and due:
                    told = this.validate() or told
                    if (this.ended or told) and not saves:  # early
                        this.save()
                if this.ended or told:
                    break
                if saves:
                    this.report()
        agreed.close()
        if this.finished:
            this.finish()
        this.report(samples=told != signal.SIGTERM)
        this.wait_for_copies(lambda: signal.SIGTERM in (told, stop.signal))
    return TrainResult(run, training.step, this.finished, told)


class _Fit:
    """What the loop does besides training. All processes call it alike; only the first one writes."""

    def __init__(self, training: Training, run: Path, stop: StopRequest, held: bool) -> None:
        self.training, self.run, self.stop, self.held = training, run, stop, held
        self.world, self.task, self.reporter = training.world, training.task, training.reporter
        self.bad: list[dict[str, Any]] = []  # samples that could not be read, not yet in the log
        self.waited = 0.0  # seconds spent waiting for data
        self.cut_short = 0  # the signal that ended the last validation before it was done
        self.runlog: RunLog | None = None
        self._closing = ExitStack()

    def __enter__(self) -> _Fit:
        with self._closing:  # what was opened is closed again when the rest fails
            self._closing.callback(self.training.loader.close)
            so_far = read_best(self.run, self.training.step), count_stale(self.run, self.training.step)
            # The best validation, and how many came after it; the first process alone writes them.
            self.best, self.stale = self.world.from_main(so_far)
            if self.world.is_main:
                recipe = self.training.recipe
                if not self.held:
                    self._closing.enter_context(hold_run(self.run))
                monitor = HealthMonitor(self.task.candidates, warmup_steps=recipe.optim.warmup_steps)
                log = RunLog(self.run, self.training.step, self.reporter, monitor)
                self.runlog = self._closing.enter_context(log)
                for record in read_records(self.run / METRICS_FILE):  # what was said before is not said again
                    monitor.examine(record)
                write_whole(self.run / "config.yaml", recipe.to_yaml())
                (self.run / BEGUN_FILE).unlink(missing_ok=True)
                point_latest_at(self.run)
                warn = self.reporter.message
                log.track(open_trackers(self.run, recipe.train.track, recipe.model_dump(), self.training.step, warn))
                self.uploader = self._closing.enter_context(Uploader(recipe.train.upload, self.reporter))
            self._warn_without_validation()
            self.reporter.started(self.training.step, self.training.total_steps)
            self._closing = self._closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def ended(self) -> bool:
        """Is the training done: all steps, or `patience` validations without a better one? Agreed by all processes."""
        patience = self.training.recipe.train.patience
        return self.training.step >= self.training.total_steps or (patience is not None and self.stale >= patience)

    @property
    def finished(self) -> bool:
        """Is there nothing left to do, validation included?"""
        return self.ended and not self.cut_short

    def _warn_without_validation(self) -> None:
        train = self.training.recipe.train
        if not self.task.validates and (train.patience is not None or train.select == "best"):
            self.reporter.message(
                "without validation data, train.patience and train.select=best have no effect: use --val"
            )

    def batches_of_steps(self) -> Iterator[list[Any]]:
        """This process's batches of each step, to the end of the epoch; the time they are waited for is counted."""
        training = self.training
        epoch, start = divmod(training.step, training.loader.steps_per_epoch)
        batches = training.loader.batches(epoch, start)
        for _ in range(start, training.loader.steps_per_epoch):
            began = time.perf_counter()
            of_step = [next(batches) for _ in range(training.recipe.train.accumulate)]
            self.waited += time.perf_counter() - began
            self.bad += [{"step": training.step + 1, **entry} for batch in of_step for entry in batch.bad]
            yield of_step

    def log_bad_samples(self) -> None:
        """Write down what could not be read since the last time."""
        of_all = self.world.collect(self.bad)
        self.bad = []
        if self.runlog:
            self.runlog.bad_samples([entry for of_one in of_all for entry in of_one])

    def log(self, losses: dict[str, Tensor]) -> None:
        """A line of `metrics.jsonl`; losses are means over all processes."""
        training = self.training
        means = self.world.mean(torch.stack(list(losses.values()))).tolist()
        if self.runlog is None:
            return
        record = {
            "step": training.step,
            "epoch": training.step / training.loader.steps_per_epoch,
            **dict(zip(losses, means, strict=True)),
            "lr": training.optimizer.param_groups[0]["lr"],
            "grad_norm": training.grad_norm.item(),
            **training.statistics,
            "samples": training.step * training.loader.samples_per_step,
        }
        if training.device.type == "cuda":
            record["peak_memory_gb"] = torch.cuda.max_memory_allocated(training.device) / 1e9
        if training.scaler.is_enabled():
            record["loss_scale"] = training.scaler.get_scale()
        self.runlog.training(record, self.waited)

    def raise_if_nonfinite(self) -> None:
        """Stop the run when an update had to be withheld, and name what is not finite, and the samples."""
        found = self.training.nonfinite_steps()
        if found is None:
            return
        step, place = self.training.step, self.run / "nonfinite_samples.json"
        samples = [sample for of_one in self.world.collect(found.samples) for sample in of_one]
        try:
            cause = find_cause(self.training, range(found.first - 1, step))
        except (RuntimeError, TclError):  # what is wrong already may be why; it must not hide it
            cause = Cause()
        causes = self.world.collect(cause)
        cause = next((each for each in causes if each.term or each.layer), cause)
        alone = [sample for each in causes for sample in each.samples]
        if self.world.is_main:
            findings = {"term": cause.term, "layer": cause.layer, "alone": alone}
            text = json.dumps({"step": step, **findings, "samples": samples}, indent=2)
            place.write_text(text + "\n", encoding="utf-8")
        when = f"at step {step}" if found.first == step else f"between steps {found.first} and {step}"
        lr, (low, high) = self.training.recipe.optim.lr, USUAL_LR
        advice = "look at these samples, or lower optim.lr"
        if lr_is_far_off(lr):
            advice = f"likely because optim.lr={lr:g} is far above the usual {low:g} to {high:g}: lower it"
        raise NonFiniteError(
            f"the loss or its gradient is not finite {when}; the update was not applied. {cause.describe()}"
            f"Samples: {', '.join(samples[:3])}{', ...' if len(samples) > 3 else ''} (all in {place})",
            hint=f"{advice}, then continue with --resume --out {self.run}",
        )

    def save(self) -> None:
        """Write a checkpoint, start to copy it, and delete those that are too many."""
        if self.world.is_main:
            self.uploader.copy(self.training.save(self.run))
            self._prune()

    def wait_for_copies(self, hurry: Callable[[], bool]) -> None:
        """Let the copies under way finish, for a while; a checkpoint that only they still needed goes then."""
        if self.world.is_main:
            self.uploader.wait(stop=hurry)
            self._prune()

    def _prune(self) -> None:
        prune_checkpoints(self.run, self.training.recipe.train.keep, spare=self.uploader.pending)

    def owes_validation(self, every: int) -> bool:
        """Was the run stopped after the step of a validation, but before it was done?"""
        step = self.training.step
        due = step > 0 and (step >= self.training.total_steps or step % every == 0)
        done = any("loss" not in record and record["step"] == step for record in read_records(self.run / METRICS_FILE))
        return self.task.validates and due and bool(self.world.from_main(not done))

    def validate(self) -> int:
        """Figures on the validation data, and the best model so far; the processes share the work.

        Returns:
            the signal that cut it short in any of them, else 0; then it is done when the run is resumed.
        """
        figures = self._figures()
        if figures is None:
            self.cut_short = max(self.world.collect(self.stop.signal))
            return self.cut_short
        better = self._compare(figures[self.task.best_by])
        if self.runlog is not None:
            values = {f"val_{name}": value for name, value in figures.items()}
            self.runlog.validation({"step": self.training.step, **values})
            if better:
                save_model(self.training.model, self.run / BEST_FOLDER)
                write_whole(self.run / BEST_FILE, json.dumps(self.best) + "\n")
        if self.ended and self.training.step < self.training.total_steps:
            self.reporter.note(f"No better in {self.stale} validations: ending at step {self.training.step}.")
        return 0

    def _figures(self) -> dict[str, float] | None:
        """Figures on the validation data, the same in all processes; None where any of them was told to end."""
        with self.training.evaluating(), self.runlog.paused() if self.runlog else nullcontext():
            try:
                return self.task.validate(Share.of(self.world, while_wanted=self.stop.raising))
            except Stopped:
                return None

    def _compare(self, value: float) -> bool:
        """Is this the best validation so far? Every process decides it for itself, from the same figures."""
        better = self.best is None or value > self.best["value"]
        if better:
            self.best = {"step": self.training.step, "metric": self.task.best_by, "value": value}
        self.stale = 0 if better else self.stale + 1
        return better

    def report(self, samples: bool = True) -> None:
        """Write `report.html`; without samples, which a model on a CPU takes long for, where time is short."""
        if self.runlog is None:
            return
        with self.training.evaluating(), self.runlog.paused():
            try:
                examples = self.task.examples() if samples else []
                write_report(self.run, examples, published=self.training.recipe.task == "pretrain")
            except OSError as error:
                self.reporter.message(f"report.html was not written: {error.strerror or error}")

    def finish(self) -> None:
        """Write the model of the run."""
        if not self.world.is_main:
            return
        best = self.training.recipe.train.select == "best" and self.best is not None
        model = load_model_folder(self.run / BEST_FOLDER) if best else self.training.model
        save_model(model, self.run / "model")
        self.uploader.copy(self.run / "model")
