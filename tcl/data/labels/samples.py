"""Rows with labels as training samples: views of their images, the text, and what is to be learned.

That is people's answers with their weights for a question, and a class for a statement.

Shapes: B rows of a batch, n images of a statement, H x W pixels, S token ids of the longest text, A answers in all,
T token ids of the longest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from tcl.data.images.augment import Transform
from tcl.data.labels.questions import Question
from tcl.data.labels.statements import Statement
from tcl.data.loader import Batch
from tcl.data.sources.find import SourceRows
from tcl.data.tokenizer import CaptionTokenizer, clean_caption, clean_question


@dataclass
class QuestionBatch(Batch):
    """B questions with A answers.

    Args:
        images: [B, 3, H, W], uint8.
        input_ids: of the questions, [B, S], int64.
        attention_mask: [B, S], bool, True at tokens.
        answer_ids: `[CLS] answer [SEP]`, [A, T], int64.
        answer_mask: [A, T], bool.
        question_of_answer: [A], int64.
        weights: of the answers, [A].
    """

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    question_of_answer: Tensor
    weights: Tensor


class QuestionSample(NamedTuple):
    """One question: a view [3, H, W], uint8, the question, each different answer, and its weight."""

    image: Tensor
    question: str
    answers: list[str]
    weights: list[float]


class QuestionSamples:
    """What the training of VQA loads.

    Args:
        questions: all with answers; they are kept as a table, which takes less memory and is shared by workers.
        tokenizer: turns questions and answers into ids.
        transform: of the image, see `build_transform`.
        max_length: token ids kept of a question.
        max_answer_length: token ids kept of an answer.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: CaptionTokenizer,
        transform: Transform,
        *,
        max_length: int,
        max_answer_length: int,
    ) -> None:
        answers, weights = pa.large_list(pa.string()), pa.large_list(pa.float32())
        columns = {
            "image": pa.array([question.image for question in questions], pa.large_string()),
            "question": pa.array([question.question for question in questions], pa.large_string()),
            "answers": pa.array([list(question.weights) for question in questions], answers),
            "weights": pa.array([list(question.weights.values()) for question in questions], weights),
        }
        self._table = pa.table(columns)
        self.tokenizer, self.transform = tokenizer, transform
        self.max_length, self.max_answer_length = max_length, max_answer_length

    @property
    def parts(self) -> Sequence[SourceRows]:
        """All rows in one."""
        return [SourceRows("", 0, len(self))]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the rows and their order."""
        digest = hashlib.sha256()
        for batch in self._table.to_batches(max_chunksize=4096):
            digest.update(json.dumps(batch.to_pylist()).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def name(self, row: int) -> str:
        """The path or reference of the image."""
        return str(self._table["image"][row].as_py())

    def load(self, row: int) -> QuestionSample:
        """Draw a view of the image."""
        image, question, answers, weights = (column[row].as_py() for column in self._table.columns)
        return QuestionSample(self.transform(image), question, answers, weights)

    def collate(self, samples: list[QuestionSample], sample_ids: list[str], bad: list[dict[str, str]]) -> QuestionBatch:
        """Stack the views, and pad questions and answers to the longest of each."""
        questions = [clean_question(sample.question) for sample in samples]
        input_ids, attention_mask = self.tokenizer(questions, self.max_length, clean=False)
        answers = [f"{answer} [SEP]" for sample in samples for answer in sample.answers]
        answer_ids, answer_mask = self.tokenizer(answers, self.max_answer_length, clean=False)
        return QuestionBatch(
            sample_ids=sample_ids,
            bad=bad,
            images=torch.stack([sample.image for sample in samples]),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask).bool(),
            answer_ids=torch.from_numpy(answer_ids),
            answer_mask=torch.from_numpy(answer_mask).bool(),
            question_of_answer=torch.tensor([row for row, sample in enumerate(samples) for _ in sample.answers]),
            weights=torch.tensor([weight for sample in samples for weight in sample.weights]),
        )


@dataclass
class StatementBatch(Batch):
    """B statements.

    Args:
        images: the first image of every statement, then the second, if there are two: [n B, 3, H, W], uint8.
        input_ids: [B, S], int64.
        attention_mask: [B, S], bool, True at tokens.
        labels: numbers of the classes, [B], int64.
    """

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class StatementSample(NamedTuple):
    """One statement: a view [3, H, W], uint8, of each image, the text, and the number of its class."""

    images: list[Tensor]
    text: str
    label: int


class StatementSamples:
    """What the training of entailment and NLVR2 loads.

    Args:
        statements: all with a label; they are kept as a table, which takes less memory and is shared by workers.
        labels: the classes in the order of their numbers.
        tokenizer: turns texts into ids.
        transform: of every image, see `build_transform`.
        max_words: words kept of a text.
        max_length: token ids kept of it.
    """

    def __init__(
        self,
        statements: Sequence[Statement],
        labels: Sequence[str],
        tokenizer: CaptionTokenizer,
        transform: Transform,
        *,
        max_words: int,
        max_length: int,
    ) -> None:
        self._images = pa.array([statement.images for statement in statements], pa.large_list(pa.large_string()))
        self._texts = pa.array([statement.text for statement in statements], pa.large_string())
        self._labels = [labels.index(str(statement.label)) for statement in statements]
        self.tokenizer, self.transform = tokenizer, transform
        self.max_words, self.max_length = max_words, max_length

    @property
    def parts(self) -> Sequence[SourceRows]:
        """All rows in one."""
        return [SourceRows("", 0, len(self))]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the rows and their order."""
        rows = zip(self._images.to_pylist(), self._texts.to_pylist(), self._labels, strict=True)
        return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, row: int) -> str:
        """The paths or references of the images."""
        return ", ".join(self._images[row].as_py())

    def load(self, row: int) -> StatementSample:
        """Draw a view of each image."""
        images = [self.transform(image) for image in self._images[row].as_py()]
        return StatementSample(images, self._texts[row].as_py(), self._labels[row])

    def collate(
        self, samples: list[StatementSample], sample_ids: list[str], bad: list[dict[str, str]]
    ) -> StatementBatch:
        """Stack the views, first images first, and pad the texts to the longest."""
        texts = [clean_caption(sample.text, self.max_words) for sample in samples]
        input_ids, attention_mask = self.tokenizer(texts, self.max_length, clean=False)
        by_place = zip(*(sample.images for sample in samples), strict=True)
        return StatementBatch(
            sample_ids=sample_ids,
            bad=bad,
            images=torch.stack([image for of_place in by_place for image in of_place]),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask).bool(),
            labels=torch.tensor([sample.label for sample in samples]),
        )
