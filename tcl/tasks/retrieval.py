"""Fine-tuning for retrieval, and for grounding, which learns from captions alone by the same objective.

It differs from pre-training in the objective, which knows which pairs show the same image. As published, captions are
not cut at `max_length` in training, and the temperature is not clamped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tcl.data.images.augment import Transform
from tcl.data.labels.regions import read_regions
from tcl.data.pairs.samples import IdentifiedBatch, IdentifiedPairs
from tcl.data.sources.columns import Columns
from tcl.evaluation.tasks import EVALUATIONS
from tcl.objective.retrieval import ImageIdQueue, RetrievalLosses, RetrievalObjective
from tcl.report.page import Sample
from tcl.report.samples import region_samples
from tcl.tasks.pretraining import Pretraining
from tcl.training.preflight import check_readable
from tcl.training.reporter import Reporter


class RetrievalTraining(Pretraining):
    """Training on pairs whose images have ids."""

    queue: ImageIdQueue

    def build_samples(self, transform: Transform) -> IdentifiedPairs:
        """What the loader loads."""
        positions = self.recipe.model.text_encoder_args.max_position_embeddings
        return IdentifiedPairs(self.index, self.model.processor.tokenizer, transform, positions)

    def build_objective(self) -> nn.Module:
        """Model, teacher, a new queue, and the losses; the MLM head has no part in them."""
        self.model.text_encoder.cls.requires_grad_(False)
        self.queue = ImageIdQueue(self.recipe.model.embed_dim, self.recipe.loss.queue_size)
        return RetrievalObjective(self.model, self.teacher, self.queue)

    def begin_step(self) -> None:
        """Move the teacher, once per optimizer step."""
        self.teacher.update(self.model, self.recipe.loss.momentum)

    def losses(  # type: ignore[override]
        self, objective: nn.Module, batch: IdentifiedBatch, alpha: float, seed: int
    ) -> RetrievalLosses:
        """The losses of one batch; what it adds to the queue waits for the end of the step."""
        device = torch.device(self.world.device)
        batch = batch.to(device)
        generator = torch.Generator(device).manual_seed(seed)
        losses, image_feat, text_feat = objective(
            batch.images,
            batch.images_aug,
            batch.input_ids,
            batch.attention_mask,
            batch.image_ids,
            alpha,
            generator,
        )
        self._queued.append((image_feat, text_feat, batch.image_ids))
        return losses

    def end_step(self) -> None:
        """Put the features of all batches of the step into the queue, with the ids of their images."""
        for features in self._queued:
            self.queue.enqueue_images(*(self.world.gather(rows) for rows in features))
        self._queued.clear()

    def synthetic_batch(self, size: int) -> IdentifiedBatch:
        """A made-up batch of the shapes of this run, to measure time and memory with."""
        image_ids: Tensor = torch.arange(size)
        return IdentifiedBatch(**vars(super().synthetic_batch(size)), image_ids=image_ids)


class GroundingTraining(RetrievalTraining):
    """The same, but what counts is where the model looks: validation data has boxes."""

    best_by = "accuracy"
    evaluation = EVALUATIONS["grounding"]

    def read_validation(self, reporter: Reporter) -> None:
        """Read the regions to validate on, where there are any."""
        data = self.recipe.data
        columns = Columns.of(data)
        self.validation = list(read_regions(data.val, data.images, columns)) or None if data.val else None
        if self.validation:
            check_readable(region.image for region in self.validation)

    def examples(self) -> Sequence[Sample]:  # type: ignore[override]
        """A few validation regions with the boxes that are found; without any, pairs with their nearest captions."""
        return region_samples(self.model, self.validation) if self.validation else super().examples()
