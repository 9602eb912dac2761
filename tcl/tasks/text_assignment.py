"""Text assignment, the step before NLVR2: training on pairs, of which each text is shown with two images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcl.config.recipe import Recipe
from tcl.data.labels.classes import ASSIGNMENT
from tcl.data.loader import Batch
from tcl.data.pairs.samples import PairSamples
from tcl.distributed.share import Share
from tcl.distributed.world import World
from tcl.evaluation.batches import decode_batches
from tcl.models.classifier import TextAssigner
from tcl.models.heads import HeadConfig
from tcl.objective.classification import ClassifierLosses
from tcl.objective.text_assignment import TextAssignmentObjective
from tcl.tasks.finetuning import Finetuning
from tcl.tasks.synthetic import SyntheticInputs
from tcl.training.preflight import check_readable, read_index
from tcl.training.reporter import Reporter
from tcl.training.start_model import start_model
from tcl.training.task import transform_of


@dataclass
class CaptionedBatch(Batch):
    """B images with a caption each.

    Args:
        images: [B, 3, H, W], uint8.
        input_ids: [B, S], int64.
        attention_mask: [B, S], bool, True at tokens.
    """

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor


class SingleViews(PairSamples):
    """Pairs with one view of the image."""

    @property
    def fingerprint(self) -> str:
        """Identifies the pairs and their order."""
        return self.index.fingerprint

    def load(self, row: int) -> tuple[Tensor, str]:  # type: ignore[override]
        """Draw a caption and a view."""
        pair = self.index[row]
        caption = pair.captions[int(torch.randint(len(pair.captions), ()))]
        return self.transform(pair.image), caption

    def collate(  # type: ignore[override]
        self, samples: list[tuple[Tensor, str]], sample_ids: list[str], bad: list[dict[str, str]]
    ) -> CaptionedBatch:
        """Stack the views and pad the captions to the longest."""
        images, captions = zip(*samples, strict=True)
        input_ids, mask = self.tokenizer(captions, self.max_length)
        return CaptionedBatch(
            sample_ids, bad, torch.stack(images), torch.from_numpy(input_ids), torch.from_numpy(mask).bool()
        )


class TextAssignmentTraining(Finetuning):
    """Training on pairs: which of two images does the text belong to?"""

    model: TextAssigner

    def __init__(self, recipe: Recipe, world: World, checkpoint: Path | None, reporter: Reporter) -> None:
        """Read the data and build the model.

        Raises:
            ConfigError: the recipe does not fit the starting weights.
        """
        with world.main_first():
            index = read_index(recipe.data.train, recipe, reporter)
            self.validation = read_index(recipe.data.val, recipe, reporter) if recipe.data.val else None
        if self.validation:
            check_readable(pair.image for pair in self.validation)
        head = HeadConfig(task="text_assignment", labels=list(ASSIGNMENT))
        captions = (text for pair in index for text in pair.captions)
        model = cast(TextAssigner, start_model(recipe, captions, checkpoint, reporter, lambda known: head))
        samples = SingleViews(index, model.processor.tokenizer, transform_of(recipe), recipe.model.max_length)
        super().__init__(recipe, world, model, samples, TextAssignmentObjective(model))

    def losses(self, objective: nn.Module, batch: CaptionedBatch, alpha: float, seed: int) -> ClassifierLosses:
        """The loss of one batch; `seed` decides which images stand beside each text."""
        batch = batch.to(self.world.device)
        generator = torch.Generator(self.world.device).manual_seed(seed)
        losses: ClassifierLosses = objective(batch.images, batch.input_ids, batch.attention_mask, generator)
        return losses

    def synthetic_batch(self, size: int) -> CaptionedBatch:
        """A made-up batch of the shapes of this run, to measure time and memory with."""
        inputs = SyntheticInputs(self.model)
        return CaptionedBatch([], [], inputs.images(size), *inputs.texts(size, self.recipe.model.max_length))

    @torch.inference_mode()
    def validate(self, share: Share) -> dict[str, float]:
        """Share of right assignments on the validation pairs, in percent; each text has the same images every time."""
        device = self.model.device
        right = rows = 0
        with share.agree():
            for row, pixels, captions in self._val_batches(share):
                input_ids, mask = (torch.from_numpy(part).to(device) for part in self.model.processor.texts(captions))
                generator = torch.Generator(device).manual_seed(row)  # whichever process draws
                losses = self.objective(torch.from_numpy(pixels).to(device), input_ids, mask.bool(), generator)
                right += round(losses.accuracy.item() * len(captions))
                rows += len(captions)
        right, rows = (sum(of_all) for of_all in zip(*share.collect((right, rows)), strict=True))
        return {"accuracy": 100.0 * right / max(rows, 1)}

    def _val_batches(self, share: Share) -> Iterator[tuple[int, Any, list[str]]]:
        """Of this process's batches the first row, and pixels and first captions of what can be read.

        One alone would have nothing beside it.
        """
        assert self.validation is not None
        pairs, size = list(self.validation), max(self.recipe.data.batch_size, 2)
        own = share.rows(len(pairs), size)
        for batch in decode_batches(self.model.processor, [pairs[row].image for row in own], size, 4):
            rows = [own[place] for place in batch.rows]
            if len(rows) > 1:
                yield rows[0], batch.pixels, [pairs[row].captions[0] for row in rows]
