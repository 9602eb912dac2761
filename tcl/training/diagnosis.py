"""Where a loss stopped being finite: its first term, the first layer, and the samples that do it each by itself.

The batches are read and computed once more, which takes no longer than the steps that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tcl.machine.seeding import mix

if TYPE_CHECKING:
    from tcl.training.trainer import Training

SUMS = ("loss", "contrastive")  # of other terms
USUAL_LR = (1e-5, 1e-3)  # of the shipped recipes
FAR = 3  # times the largest of them


@dataclass
class Cause:
    """What is known of a loss or gradient that is not finite.

    Attributes:
        term: the first term of the loss that is not.
        layer: the first layer, in the order of computation, whose output is not; of a loss that is finite, the first
            parameter whose gradient is not.
        samples: of those of the first such batch, those whose loss is not finite when they are alone in a batch.
        everyone: all of them are, so it is the model and not the data.
    """

    term: str | None = None
    layer: str | None = None
    samples: list[str] = field(default_factory=list)
    everyone: bool = False

    def describe(self) -> str:
        """One or two sentences; empty where nothing was found."""
        term = f"the loss term {self.term}" if self.term else ""
        layer = f"the layer {self.layer}" if self.term else f"the gradient of {self.layer}"
        places = " and ".join(part for part in (term, layer if self.layer else "") if part)
        found = f"The first that is not finite: {places}. " if places else ""
        if self.everyone:
            return f"{found}Every sample of the batch does it, so it is the model, not the data. "
        return found + (f"It comes of {', '.join(self.samples[:3])}. " if self.samples else "")


def find_cause(training: Training, steps: Iterable[int]) -> Cause:
    """Look for the first batch of these steps whose loss or gradient is not finite, and into it.

    Every process looks at its own batches.

    Args:
        training: weights as they were, since updates are withheld.
        steps: counted from 0.
    """
    per_epoch = training.loader.steps_per_epoch
    for step in steps:
        epoch, start = divmod(step, per_epoch)
        for number, batch in enumerate(islice(training.loader.batches(epoch, start), training.recipe.train.accumulate)):
            seed = mix(training.recipe.train.seed, step, number * training.world.size + training.world.rank)
            cause = _of_batch(training, batch, seed)
            if cause.term:
                alone = [
                    (one.sample_ids[0], _is_finite(training, one, seed)) for one in _singly(training, epoch, start)
                ]
                cause.samples = [name for name, finite in alone if not finite]
                cause.everyone = len(cause.samples) == len(alone) > 1
            if cause.layer or cause.term:
                return cause
    return Cause()


def _singly(training: Training, epoch: int, start: int) -> Iterator[Any]:
    training.loader.close()  # reading goes on in this process
    return training.loader.one_by_one(epoch, start)


def _of_batch(training: Training, batch: Any, seed: int) -> Cause:
    """The term and the layer, or of a finite loss the parameter; gradients are left as they were: zero."""
    layers: list[str] = []
    with _watch(training.task.objective, layers):
        losses = _losses(training, batch, seed)
    values = {name: value for name, value in losses.named().items() if not torch.isfinite(value).all()}
    if values:
        term = next((name for name in values if name not in SUMS), next(iter(values)))
        return Cause(term, layers[0] if layers else None)
    losses.total.backward()
    named = training.task.objective.named_parameters()
    bad = [name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
    training.optimizer.zero_grad()
    return Cause(layer=bad[-1].removeprefix("model.") if bad else None)  # the last: gradients come from behind


def _is_finite(training: Training, batch: Any, seed: int) -> bool:
    with torch.no_grad():
        return bool(torch.isfinite(_losses(training, batch, seed).total))


def _losses(training: Training, batch: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    with training.autocast():
        losses = training.task.losses(training.task.objective, batch, training.recipe.loss.alpha, seed)
    training.task.discard_step()
    return losses


@contextmanager
def _watch(objective: nn.Module, layers: list[str]) -> Iterator[None]:
    """Inside it, the names of layers whose output is not finite are added to `layers`, in order."""

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(output)):
                layers.append(name.removeprefix("model."))

        return hook

    layers_of_it = ((name, module) for name, module in objective.named_modules() if not isinstance(module, nn.Identity))
    handles = [module.register_forward_hook(look(name)) for name, module in layers_of_it if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def lr_is_far_off(lr: float) -> bool:
    """Is a learning rate far above those of all shipped recipes?"""
    return lr > FAR * USUAL_LR[1]
