"""What the fine-tunings with a head have in common: a model, perhaps its teacher, and no queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from tcl.config.recipe import Recipe
from tcl.data.loader import Samples
from tcl.distributed.share import Share
from tcl.distributed.world import World
from tcl.errors import ConfigError
from tcl.evaluation.tasks import EVALUATIONS
from tcl.models.task_model import TaskModel
from tcl.objective.momentum import MomentumTeacher
from tcl.report.page import Sample
from tcl.training.task import build_loader


class Rows(Samples, Protocol):
    """Samples that can tell whether they are the same as before."""

    @property
    def fingerprint(self) -> str:
        """Identifies the rows and their order."""


class Finetuning:
    """The parts of `tcl.training.task.Task` that are the same for every task with a head.

    Attributes:
        model: what is trained and saved.
        objective: model, teacher and losses in one module, for DDP to wrap.
        loader: batches of training rows.
        validation: rows to validate on, where there are any; of the subclass.
        classes: training rows of each class, where the task learns labels.
    """

    best_by = "accuracy"
    candidates: int | None = None
    validation: Any
    classes: Mapping[str, int] = {}

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        model: TaskModel,
        samples: Rows,
        objective: nn.Module,
        teacher: MomentumTeacher | None = None,
    ) -> None:
        self.recipe, self.world, self.model = recipe, world, model
        self._samples, self._teacher = samples, teacher
        self.loader = build_loader(samples, recipe, world)
        self.objective = objective.to(world.device).train()

    @property
    def rows(self) -> int:
        """Number of training rows."""
        return len(self._samples)

    @property
    def fingerprint(self) -> str:
        """Identifies the training rows and their order."""
        return self._samples.fingerprint

    @property
    def validates(self) -> bool:
        """Are there rows to validate on?"""
        return bool(self.validation)

    def validate(self, share: Share) -> dict[str, float]:
        """Accuracy on these rows, in percent."""
        depth = self.recipe.train.eval_top_k or len(self.model.head.labels)  # all answers, where some are decoded
        evaluation, batch_size = EVALUATIONS[self.recipe.task], self.recipe.data.batch_size
        figures = evaluation.run(self.model, self.validation, depth, batch_size, share).figures()
        return {self.best_by: figures[self.best_by]}

    def begin_step(self) -> None:
        """Move the teacher, once per optimizer step."""
        if self._teacher:
            self._teacher.update(self.model, self.recipe.loss.momentum)

    def statistics(self) -> dict[str, float]:
        """Nothing beyond the losses."""
        return {}

    def end_step(self) -> None:
        """Nothing is kept from one step to the next."""

    def discard_step(self) -> None:
        """Nothing is kept from one step to the next."""

    def examples(self) -> Sequence[Sample]:
        """None, where a task does not say otherwise."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What the task adds to a checkpoint."""
        return {"teacher": self._teacher.state_dict()} if self._teacher else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ConfigError: the run was started without a teacher.
        """
        if self._teacher and "teacher" not in state:
            raise ConfigError(
                f"loss.alpha is {self.recipe.loss.alpha} now, and the run was started without a teacher",
                hint="resume with loss.alpha=0, or start a new run with another --out",
            )
        if self._teacher:
            self._teacher.load_state_dict(state["teacher"])
