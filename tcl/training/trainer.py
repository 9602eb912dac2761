"""The training step and its state: one for every task, one device or many. `tcl.training.loop` is the loop around it.

The order of a step is that of the published code: clamp the temperature, move the teacher, forward, backward, clip,
update, enqueue. What is drawn at random is a function of the seed, the step and the slice of the batch, and everything
else that changes is in the checkpoint. So a resumed run computes what an uninterrupted one would have, bit for bit on a
CPU with the same number of threads; and several processes compute what one does with as many forward passes per step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tcl.config.recipe import Recipe
from tcl.distributed.world import World
from tcl.errors import ConfigError, reason_of
from tcl.machine.memory import keep_freed_memory, memory_budget
from tcl.machine.seeding import mix
from tcl.models.adapters import check_same_adaptation, lora_state_dict
from tcl.training.checkpoint import load_state, save_checkpoint
from tcl.training.footprint import Footprint, measure, time_at
from tcl.training.optim import build_optimizer, distillation_weight, learning_rate
from tcl.training.preflight import changed_batches, check_present, check_same_model
from tcl.training.reporter import Reporter
from tcl.training.task import Task
from tcl.training.trackers import check_trackers
from tcl.weights.untrained import left_untrained

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1.0  # of the loss in fp16; below it, overflow is not what makes the gradient infinite


TaskBuilder = Callable[[Recipe, World, Path | None, Reporter], Task]


class NonFinite(NamedTuple):
    """Steps whose update was withheld."""

    first: int  # of the steps that were looked at together
    samples: list[str]  # this process's, of all of them


class Training:
    """Everything a run consists of, built from its recipe; nothing is written before `save`."""

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        build_task: TaskBuilder,
        checkpoint: Path | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Read the data, build the model, and continue from `checkpoint` when given.

        Args:
            recipe: what to train, on what, and how.
            world: where this process stands.
            build_task: called once the seed is set.
            checkpoint: of the same recipe, to continue from.
            reporter: hears what happens.

        Raises:
            ConfigError: the recipe names no data, does not fit it, or does not fit the checkpoint.
        """
        self.recipe = recipe
        self.world = world
        self.device = torch.device(world.device)
        self.reporter = reporter or Reporter()
        self.step = 0
        if self.device.type == "cpu":
            keep_freed_memory()
        check_trackers(recipe.train.track)
        torch.manual_seed(recipe.train.seed)
        self.task = build_task(recipe, world, checkpoint, self.reporter)
        self.model, self.loader = self.task.model, self.task.loader
        self.model.untrained = left_untrained(self.model)
        with world.main_first():
            if world.is_main:
                check_present(self.loader.samples, self.reporter)
        self.total_steps = recipe.train.steps or recipe.train.epochs * self.loader.steps_per_epoch
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.precision = recipe.train.precision
        if self.precision == "auto":
            self.precision = "bf16" if self.device.type == "cuda" else "fp32"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.grad_norm = torch.zeros((), device=self.device)
        self.statistics: dict[str, float] = {}
        self._withheld = torch.zeros((), device=self.device)  # updates
        self._unchecked: list[str] = []  # samples since the last look at it, which was after `_checked_step`
        if checkpoint:
            self._restore(checkpoint)
        self._checked_step = self.step
        # Queue and teacher are computed alike in every process, so nothing but gradients has to travel.
        self.objective: nn.Module = self.task.objective
        if world.size > 1:
            self.objective = DistributedDataParallel(
                self.task.objective, broadcast_buffers=False, gradient_as_bucket_view=True
            )
            self._settle_gradients()

    def train_step(self, batches: list[Any], with_statistics: bool = False) -> dict[str, Tensor]:
        """Forward and backward on each of the batches, and one update.

        Args:
            batches: of this process, one per forward pass.
            with_statistics: look at the health of the run, which waits for the device.

        Returns:
            The losses by name, detached, means over the batches of this process.
        """
        lr = learning_rate(self.step, self.recipe.optim, self.loader.steps_per_epoch, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.task.begin_step()
        losses: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last or self.world.size == 1 else self.objective.no_sync():  # type: ignore[operator]
                parts = self._forward_backward(batch, number, len(batches))
            losses = {name: losses.get(name, 0) + value / len(batches) for name, value in parts.items()}
            self._unchecked += batch.sample_ids
        self._update(losses["loss"])
        if with_statistics:
            self.statistics = self.task.statistics()
        self.task.end_step()
        self.step += 1
        return losses

    def _forward_backward(self, batch: Any, number: int, of: int) -> dict[str, Tensor]:
        recipe = self.recipe
        seed = mix(recipe.train.seed, self.step, number * self.world.size + self.world.rank)
        torch.manual_seed(seed)  # for dropout
        loss = recipe.loss
        alpha = distillation_weight(self.step, loss.alpha, self.loader.steps_per_epoch, loss.alpha_ramp)
        with self.autocast():
            losses = self.task.losses(self.objective, batch, alpha, seed)
        self.scaler.scale(losses.total / of).backward()
        return losses.named()

    def _update(self, loss: Tensor) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        clip_norm = self.recipe.optim.clip_norm
        self.scaler.unscale_(self.optimizer)
        if clip_norm:
            self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        else:
            self.grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # Gradients are the same in every process, losses are not.
        bad = self.world.largest((~torch.isfinite(loss)).float())
        if self.scaler.is_enabled():  # it withholds the update of a gradient that overflowed, and scales less next time
            self._withheld += bad
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            bad = torch.maximum(bad, ~torch.isfinite(self.grad_norm))
            self._withheld += bad
            # The fused optimizer skips the update where `found_inf` is set, without the host having to wait and look.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad()

    def nonfinite_steps(self) -> NonFinite | None:
        """Has an update been withheld since this was asked last? All processes get the same answer."""
        samples, self._unchecked = self._unchecked, []
        first, self._checked_step = self._checked_step + 1, self.step
        underflow = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE
        return NonFinite(first, samples) if underflow or self._withheld.item() else None

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """The precision of the forward pass."""
        dtype = DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside it, the model is in evaluation mode and computes in the precision of the training."""
        self.model.eval()
        with self.autocast():
            yield
        self.model.train()

    # --- before the first step -----------------------------------------------------------------------------------

    def footprint(self, progress: Callable[[], None] = lambda: None) -> Footprint:
        """Memory and time of a step, measured on noise; nothing of it stays.

        Args:
            progress: told after each of the few steps that this takes.

        Raises:
            ConfigError: the device is too small for the batch.
        """
        large = max(self.loader.batch_size, 4) if self.device.type == "cuda" else 4
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

        def step(size: int) -> None:
            self._rehearse(size)
            progress()

        try:
            footprint = measure(step, self.model, [self.task.objective], (2, large))
            return time_at(footprint, step, self.model, self.loader.batch_size, memory_budget(self.device, processes))
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a batch of {large} does not fit into the memory of {self.device}",
                hint="--batch-size auto takes what fits; train.activation_checkpointing=true and train.accumulate help",
            ) from error

    def _settle_gradients(self) -> None:
        """Have DDP put the gradients into their final order in memory before the first step.

        It does so once, after its first backward pass. Of three processes or more, gloo begins each part of the memory
        with another one, so the last bits of a sum depend on its place; a run and one that is resumed differed there.
        """
        if self.device.type == "cpu" and self.world.size > 2:
            self._rehearse(2, self.objective)
            self.optimizer.zero_grad()

    def _rehearse(self, size: int, objective: nn.Module | None = None) -> None:
        """Forward and backward on `size` samples of noise."""
        batch = self.task.synthetic_batch(size)
        with self.autocast():
            losses = self.task.losses(objective or self.task.objective, batch, self.recipe.loss.alpha, seed=0)
        losses.total.backward()
        self.task.discard_step()

    # --- state ---------------------------------------------------------------------------------------------------

    def save(self, run: Path) -> Path:
        """Write a checkpoint; the first process does. Returns its folder."""
        state = {
            **self.task.state_dict(),
            "adapters": lora_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        meta = {
            "step": self.step,
            "epoch": self.step / self.loader.steps_per_epoch,
            "samples_per_step": self.loader.samples_per_step,
            "recipe": self.recipe.model_dump(),
            "data_fingerprint": self.task.fingerprint,
            "threads": torch.get_num_threads(),
        }
        return save_checkpoint(run, self.model, state, meta)

    def _restore(self, checkpoint: Path) -> None:
        weights, state, meta = load_state(checkpoint)
        check_same_model(self.recipe, meta["recipe"], checkpoint)
        check_same_adaptation(self.recipe.train, meta["recipe"]["train"], checkpoint)
        if meta["data_fingerprint"] != self.task.fingerprint:
            self.reporter.message("the training pairs changed since the checkpoint: their order will differ from it")
        for change in changed_batches(self.recipe, meta, self.loader.samples_per_step):
            self.reporter.message(change)
        before, threads = meta.get("threads"), torch.get_num_threads()
        if before and before != threads and self.device.type == "cpu":
            self.reporter.message(
                f"the number of threads is {threads} now, and was {before}: sums are added in another order, so the "
                f"last digits will differ from those of an uninterrupted run; OMP_NUM_THREADS={before} keeps them"
            )
        try:
            self.model.load_state_dict(weights | state.get("adapters", {}))
        except RuntimeError as error:
            raise ConfigError(
                f"{checkpoint}: its weights do not fit this run: {reason_of(error)}",
                hint="a resumed run keeps its model and its classes; start a new one with another --out",
            ) from error
        self.task.load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        # A setting: it may have changed.
        self.optimizer.param_groups[1]["weight_decay"] = self.recipe.optim.weight_decay
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step = meta["step"]
