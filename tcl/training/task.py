"""What the training loop asks of a task. The tasks themselves are in `tcl/tasks/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from tcl.config.recipe import Recipe
from tcl.data.images.augment import Transform, build_transform
from tcl.data.loader import Samples, TrainLoader
from tcl.distributed.share import Share
from tcl.distributed.world import World
from tcl.models.tcl import TCL
from tcl.report.page import Sample


class Losses(Protocol):
    """The losses of one batch."""

    @property
    def total(self) -> Tensor:
        """What is minimised, a scalar."""

    def named(self) -> dict[str, Tensor]:
        """Every part by name, detached, `loss` being the total."""


class Task(Protocol):
    """Data, model and losses of a run, and what happens around the forward passes of a step.

    Attributes:
        model: what is trained, and saved.
        loader: this process's batches.
        best_by: the figure of `validate` that decides which weights are the best; larger is better.
    """

    model: TCL
    loader: TrainLoader
    best_by: str

    @property
    def objective(self) -> nn.Module:
        """Model and losses in one module, teacher and queue included, for DDP to wrap."""

    @property
    def rows(self) -> int:
        """Number of training rows."""

    @property
    def fingerprint(self) -> str:
        """Identifies the training rows and their order."""

    @property
    def classes(self) -> Mapping[str, int]:
        """Training rows of each class, where the task has classes."""

    @property
    def candidates(self) -> int | None:
        """Features that each sample is contrasted with, where it is."""

    @property
    def validates(self) -> bool:
        """Is there validation data?"""

    def begin_step(self) -> None:
        """Before the forward passes of a step."""

    def losses(self, objective: nn.Module, batch: Any, alpha: float, seed: int) -> Losses:
        """The losses of one batch of the loader; all that it draws is a function of `seed`.

        Args:
            objective: `self.objective`, possibly wrapped.
            batch: still on the CPU.
            alpha: weight of the teacher's targets, now.
            seed: of this forward pass.
        """

    def statistics(self) -> dict[str, float]:
        """Figures that tell a healthy run from a failing one; asked for before `end_step` where a line is logged."""

    def end_step(self) -> None:
        """After the update of a step."""

    def discard_step(self) -> None:
        """Forget a forward pass that was only a rehearsal."""

    def synthetic_batch(self, size: int) -> Any:
        """A made-up batch of the shapes of this run, to measure time and memory with."""

    def validate(self, share: Share) -> dict[str, float]:
        """Figures on the validation data, by the model in evaluation mode.

        Args:
            share: what this process does of it; the figures are the same in all processes.
        """

    def examples(self) -> Sequence[Sample]:
        """A few samples with what the model makes of them, for the report."""

    def state_dict(self) -> dict[str, Any]:
        """What the task adds to a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""


def transform_of(recipe: Recipe) -> Transform:
    """The views that a recipe asks for."""
    return build_transform(recipe.data.augment, recipe.model.image_shape, recipe.data.min_scale)


def build_loader(samples: Samples, recipe: Recipe, world: World) -> TrainLoader:
    """This process's batches of a run."""
    slices = world.size * recipe.train.accumulate
    return TrainLoader(
        samples,
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        seed=recipe.train.seed,
        slices=slices,
        own=range(world.rank, slices, world.size),
    )
