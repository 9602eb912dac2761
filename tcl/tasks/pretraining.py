"""Pre-training on image-text pairs: the data, the model, and what happens around the loss of one batch.

The training step (`tcl.training.trainer`) calls these in the published order: `begin_step` moves the teacher, `losses`
computes one forward pass, `end_step` fills the queue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tcl.config.recipe import Recipe
from tcl.data.images.augment import Transform
from tcl.data.pairs.samples import PairBatch, PairSamples
from tcl.distributed.share import Share
from tcl.distributed.world import World
from tcl.evaluation.tasks import EVALUATIONS
from tcl.objective.momentum import FeatureQueue
from tcl.objective.pretrain import PretrainLosses, PretrainObjective
from tcl.objective.sampling import MaskedTokens, mask_tokens
from tcl.report.page import ReportSample
from tcl.report.samples import collect_samples
from tcl.tasks.synthetic import SyntheticInputs
from tcl.training.health import TEMPERATURE_RANGE, duplicate_share, feature_spread
from tcl.training.preflight import check_readable, read_index
from tcl.training.reporter import Reporter
from tcl.training.start_model import start_model, start_teacher
from tcl.training.task import build_loader, transform_of


class Pretraining:
    """What is trained, on what, and how a step begins and ends.

    Attributes:
        model: what is trained and saved.
        objective: model, teacher, queue and losses in one module, for DDP to wrap.
        loader: batches of training pairs.
        fingerprint: identifies the training pairs and their order.
    """

    def __init__(self, recipe: Recipe, world: World, checkpoint: Path | None, reporter: Reporter) -> None:
        """Read the data and build the model; a `checkpoint` gives the vocabulary, its weights are loaded later.

        Raises:
            ConfigError: the recipe names no data, or does not fit it.
        """
        self.recipe = recipe
        self.world = world
        with world.main_first():
            self.index = read_index(recipe.data.train, recipe, reporter)
            self.read_validation(reporter)
        captions = (text for pair in self.index for text in pair.captions)
        self.model = start_model(recipe, captions, checkpoint, reporter)
        self.loader = build_loader(self.build_samples(transform_of(recipe)), recipe, world)
        self.teacher = start_teacher(self.model, recipe)
        self.objective = self.build_objective().to(world.device).train()
        self._queued: list[tuple[Tensor, ...]] = []

    best_by = "r_mean"
    evaluation = EVALUATIONS["retrieval"]
    queue: FeatureQueue

    def read_validation(self, reporter: Reporter) -> None:
        """Read the validation data, where there is any."""
        self.validation: Any = None
        if self.recipe.data.val:
            self.validation = read_index(self.recipe.data.val, self.recipe, reporter)
            check_readable(pair.image for pair in self.validation)

    def build_samples(self, transform: Transform) -> PairSamples:
        """What the loader loads."""
        return PairSamples(self.index, self.model.processor.tokenizer, transform, self.recipe.model.max_length)

    def build_objective(self) -> nn.Module:
        """Model, teacher, a new queue, and the losses."""
        self.queue = FeatureQueue(self.recipe.model.embed_dim, self.recipe.loss.queue_size)
        return PretrainObjective(self.model, self.teacher, self.queue)

    @property
    def rows(self) -> int:
        """Number of training pairs."""
        return len(self.index)

    @property
    def validates(self) -> bool:
        """Is there validation data?"""
        return self.validation is not None

    @property
    def fingerprint(self) -> str:
        """Identifies the training pairs and their order."""
        return self.index.fingerprint

    @property
    def classes(self) -> dict[str, int]:
        """None: pairs have no labels."""
        return {}

    @property
    def candidates(self) -> int:
        """Features that each sample is contrasted with: those of its batch and the queue."""
        return self.loader.batch_size + self.recipe.loss.queue_size

    def begin_step(self) -> None:
        """Clamp the temperature and move the teacher, once per optimizer step."""
        with torch.no_grad():
            self.model.temp.clamp_(*TEMPERATURE_RANGE)
        self.teacher.update(self.model, self.recipe.loss.momentum)

    def losses(self, objective: nn.Module, batch: PairBatch, alpha: float, seed: int) -> PretrainLosses:
        """The losses of one batch; what it adds to the queue waits for the end of the step.

        Args:
            objective: `self.objective`, possibly wrapped.
            batch: of `self.loader`, on the CPU.
            alpha: weight of the teacher's targets, now.
            seed: of the masked words and the hard negatives.
        """
        device = torch.device(self.world.device)
        masked = self._mask(batch, torch.Generator().manual_seed(seed))
        batch = batch.to(device)
        losses, image_feat, text_feat = objective(
            batch.images,
            batch.images_aug,
            batch.input_ids,
            batch.attention_mask,
            MaskedTokens(*(tensor.to(device, non_blocking=True) for tensor in masked)),
            alpha,
            torch.Generator(device).manual_seed(seed),
        )
        self._queued.append((image_feat, text_feat))  # of the teacher, [B, E]
        return losses

    def _mask(self, batch: PairBatch, generator: torch.Generator) -> MaskedTokens:
        tokenizer = self.model.processor.tokenizer
        return mask_tokens(
            batch.input_ids,
            batch.attention_mask,
            cls_id=tokenizer.cls_id,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            probability=self.recipe.loss.mlm_probability,
            generator=generator,
        )

    def end_step(self) -> None:
        """Put the features of all batches of the step into the queue, in their order."""
        for features in self._queued:
            self.queue.enqueue(*(self.world.gather(feat) for feat in features))
        self._queued.clear()

    def statistics(self) -> dict[str, float]:
        """Figures that tell a healthy run from a failing one; called before `end_step` where a line is logged."""
        image_feat, text_feat = self._queued[-1][:2]
        return {
            "temperature": self.model.temp.item(),
            "image_feat_std": feature_spread(image_feat).item(),
            "text_feat_std": feature_spread(text_feat).item(),
            "queue_age": self.recipe.loss.queue_size / self.loader.samples_per_step,
            "duplicate_negatives": duplicate_share(image_feat, self.queue.image_queue).item(),
        }

    def discard_step(self) -> None:
        """Forget the features of a forward pass that was only a rehearsal."""
        self._queued.clear()

    def synthetic_batch(self, size: int) -> PairBatch:
        """A made-up batch of the shapes of this run, to measure time and memory with."""
        inputs = SyntheticInputs(self.model)
        input_ids, attention_mask = inputs.texts(size, self.recipe.model.max_length)
        return PairBatch([], [], inputs.images(size), inputs.images(size), input_ids, attention_mask)

    def validate(self, share: Share) -> dict[str, float]:
        """The figures of `evaluation`; retrieval is re-ranked if so set."""
        top_k, batch_size = self.recipe.train.eval_top_k, self.recipe.data.batch_size
        return self.evaluation.run(self.model, self.validation, top_k, batch_size, share).figures()

    def examples(self) -> list[ReportSample]:
        """A few pairs, held-out ones where there are any, with their nearest captions."""
        return collect_samples(self.model, self.validation or self.index)

    def state_dict(self) -> dict[str, Any]:
        """What the task adds to a checkpoint."""
        return {"teacher": self.teacher.state_dict(), "queue": self.queue.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.teacher.load_state_dict(state["teacher"])
        self.queue.load_state_dict(state["queue"])
