"""Fine-tuning for visual entailment and NLVR2, with the published classes or one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from tcl.config.recipe import Recipe
from tcl.data.labels.classes import spelling_warning
from tcl.data.labels.samples import StatementBatch, StatementSamples
from tcl.data.labels.statements import Statement, StatementTask, label_set, read_statements
from tcl.data.sources.columns import Columns
from tcl.distributed.world import World
from tcl.evaluation.statements import MAX_WORDS
from tcl.models.classifier import Classifier
from tcl.models.heads import HeadConfig
from tcl.objective.classification import ClassifierLosses, ClassifierObjective
from tcl.report.page import Sample
from tcl.report.samples import statement_samples
from tcl.tasks.finetuning import Finetuning
from tcl.tasks.synthetic import SyntheticInputs
from tcl.training.preflight import check_readable
from tcl.training.reporter import Reporter
from tcl.training.start_model import start_model, start_teacher
from tcl.training.task import transform_of

SYNTHETIC_LENGTH = 30  # tokens of a text that memory and time are measured with


class StatementTraining(Finetuning):
    """Training on statements: a text about one image or two, and its class."""

    model: Classifier

    def __init__(self, recipe: Recipe, world: World, checkpoint: Path | None, reporter: Reporter) -> None:
        """Read the data and build the model.

        Raises:
            DataError: a row that cannot be used, one class only, or a validation label that training does not have.
        """
        self.task = cast(StatementTask, recipe.task)
        self._data = recipe.data
        with world.main_first():
            columns = Columns.of(recipe.data)
            statements = list(read_statements(self.task, recipe.data.train, recipe.data.images, columns))
        self.validation: list[Statement] = []
        counts = Counter(str(statement.label) for statement in statements)
        found = counts.keys()
        if warning := spelling_warning(counts, "labels"):
            reporter.message(warning)

        def choose_head(known: HeadConfig | None) -> HeadConfig:
            labels = label_set(self.task, found)
            if known and known.task == self.task and found <= set(known.labels):
                labels = known.labels
            with world.main_first():
                self.validation = self._read_validation(labels)
            return HeadConfig(task=self.task, labels=labels)

        texts = (statement.text for statement in statements)
        model = cast(Classifier, start_model(recipe, texts, checkpoint, reporter, choose_head))
        self.classes = {label: counts[label] for label in model.head.labels}
        samples = StatementSamples(
            statements,
            model.head.labels,
            model.processor.tokenizer,
            transform_of(recipe),
            max_words=MAX_WORDS[self.task],
            max_length=model.max_positions,
        )
        teacher = start_teacher(model, recipe) if recipe.loss.alpha else None
        super().__init__(recipe, world, model, samples, ClassifierObjective(model, teacher), teacher)

    def _read_validation(self, labels: list[str]) -> list[Statement]:
        if not self._data.val:
            return []
        columns = Columns.of(self._data)
        statements = list(read_statements(self.task, self._data.val, self._data.images, columns, labels=labels))
        check_readable(image for statement in statements for image in statement.images)
        return statements

    def losses(self, objective: nn.Module, batch: StatementBatch, alpha: float, seed: int) -> ClassifierLosses:
        """The loss of one batch; nothing is drawn but dropout."""
        batch = batch.to(self.world.device)
        losses: ClassifierLosses = objective(batch.images, batch.input_ids, batch.attention_mask, batch.labels, alpha)
        return losses

    def synthetic_batch(self, size: int) -> StatementBatch:
        """A made-up batch of the shapes of this run, to measure time and memory with."""
        inputs = SyntheticInputs(self.model)
        input_ids, attention_mask = inputs.texts(size, min(SYNTHETIC_LENGTH, self.model.max_positions))
        images = inputs.images(size * self.model.images_per_text)
        return StatementBatch([], [], images, input_ids, attention_mask, torch.zeros(size, dtype=torch.long))

    def examples(self) -> Sequence[Sample]:
        """A few validation statements with the likeliest classes."""
        return statement_samples(self.model, self.validation) if self.validation else []
