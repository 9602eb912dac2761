"""Fine-tuning for visual question answering; the answers to choose from are those of the data, or a given list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from tcl.config.recipe import Recipe
from tcl.data.labels.classes import spelling_warning
from tcl.data.labels.questions import Question, answer_list, read_answer_list, read_questions
from tcl.data.labels.samples import QuestionBatch, QuestionSamples
from tcl.data.sources.columns import Columns
from tcl.distributed.world import World
from tcl.errors import DataError
from tcl.evaluation.metrics import normalise_answer
from tcl.models.heads import HeadConfig
from tcl.models.vqa import VqaModel
from tcl.objective.vqa import VqaLosses, VqaObjective
from tcl.report.page import Sample
from tcl.report.samples import answer_samples
from tcl.tasks.finetuning import Finetuning
from tcl.tasks.synthetic import SyntheticInputs
from tcl.training.preflight import check_readable
from tcl.training.reporter import Reporter
from tcl.training.start_model import start_model
from tcl.training.task import transform_of

SYNTHETIC_LENGTH = 5  # tokens of an answer that memory and time are measured with


class VqaTraining(Finetuning):
    """Training on questions with people's answers."""

    model: VqaModel

    def __init__(self, recipe: Recipe, world: World, checkpoint: Path | None, reporter: Reporter) -> None:
        """Read the data and build the model.

        Raises:
            UsageError: there is no such answer list.
            DataError: a row that cannot be used, or no question has an answer of the list.
        """
        data, config = recipe.data, recipe.model
        with world.main_first():
            columns = Columns.of(data)
            questions = list(read_questions(data.train, data.images, columns))
            self.validation = list(read_questions(data.val, data.images, columns)) if data.val else []
            answers = read_answer_list(Path(data.answers)) if data.answers else answer_list(questions, data.max_answers)
            _check_answers(questions, answers, reporter)
            counts = Counter(answer for question in questions for answer in set(question.answers))
            self.classes = {answer: counts[answer] for answer in answers}
            if warning := spelling_warning(self.classes, "answers"):
                reporter.message(warning)
            if self.validation:
                check_readable(question.image for question in self.validation)

        def choose_head(known: HeadConfig | None) -> HeadConfig:
            layers = config.text_encoder_args.num_hidden_layers - config.fusion_layer
            layers = known.decoder_layers if known and known.task == "vqa" else layers
            return HeadConfig(task="vqa", labels=answers, decoder_layers=layers)

        texts = (text for question in questions for text in (question.question, *question.answers))
        model = cast(VqaModel, start_model(recipe, texts, checkpoint, reporter, choose_head))
        samples = QuestionSamples(
            questions,
            model.processor.tokenizer,
            transform_of(recipe),
            max_length=config.max_length,
            max_answer_length=model.max_positions,
        )
        super().__init__(recipe, world, model, samples, VqaObjective(model))

    def losses(self, objective: nn.Module, batch: QuestionBatch, alpha: float, seed: int) -> VqaLosses:
        """The loss of one batch; nothing is drawn but dropout, and there is no teacher."""
        batch = batch.to(self.world.device)
        losses: VqaLosses = objective(
            batch.images,
            batch.input_ids,
            batch.attention_mask,
            batch.answer_ids,
            batch.answer_mask,
            batch.question_of_answer,
            batch.weights,
        )
        return losses

    def synthetic_batch(self, size: int) -> QuestionBatch:
        """A made-up batch of the shapes of this run, to measure time and memory with: one answer per question."""
        inputs = SyntheticInputs(self.model)
        question, answer = inputs.texts(size, self.recipe.model.max_length), inputs.texts(size, SYNTHETIC_LENGTH)
        return QuestionBatch(
            [], [], inputs.images(size), *question, *answer, torch.arange(size), torch.full((size,), 1.0)
        )

    def examples(self) -> Sequence[Sample]:
        """A few validation questions with the likeliest answers."""
        return answer_samples(self.model, self.validation) if self.validation else []


def _check_answers(questions: list[Question], answers: list[str], reporter: Reporter) -> None:
    """Say how many questions the model will never answer right, as none of their answers is in the list."""
    known = {normalise_answer(answer) for answer in answers}
    outside = [row for row in questions if not any(normalise_answer(answer) in known for answer in row.weights)]
    if not outside:
        return
    first = f"{outside[0].place}: {', '.join(outside[0].weights)}"
    if len(outside) == len(questions):
        raise DataError(
            f"no question has an answer that is in the answer list; the first: {first}", hint="check data.answers"
        )
    reporter.message(f"{len(outside)} of {len(questions)} questions have no answer in the answer list: {first}")
