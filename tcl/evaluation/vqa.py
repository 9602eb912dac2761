"""Visual question answering: the model ranks a list of answers, and is compared with what people said.

Letters: B questions, N answers of the list, T tokens of an answer, S of a question, k answers that are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tcl.data.labels.questions import Question
from tcl.data.tokenizer import CaptionTokenizer, clean_question
from tcl.distributed.share import ALONE, Share
from tcl.evaluation.batches import left_out, rows_by_image
from tcl.evaluation.metrics import answer_type, normalise_answer, percent, soft_accuracy
from tcl.models.vqa import AskedQuestions, VqaModel

ROWS = 512  # answers that pass through the decoder at once
TOKENS = 2048  # of these, tokens whose vocabulary logits are held at once: 250 MB with BERT's vocabulary


class AnswerList(NamedTuple):
    """The answers that are ranked, as the decoder reads them."""

    input_ids: Tensor  # `[CLS] answer [SEP]`, int64 [N, T]
    mask: Tensor  # bool [N, T]

    def to(self, device: torch.device) -> AnswerList:
        """The same on a device."""
        return AnswerList(self.input_ids.to(device), self.mask.to(device))


def tokenize_answers(answers: Sequence[str], tokenizer: CaptionTokenizer, max_length: int | None = None) -> AnswerList:
    """Answers as written to `[CLS] answer [SEP]`; one that is too long loses its end."""
    input_ids, mask = tokenizer([f"{answer} [SEP]" for answer in answers], max_length, clean=False)
    return AnswerList(torch.from_numpy(input_ids), torch.from_numpy(mask).bool())


class Ranking(NamedTuple):
    """The best answers of each question, best first; k of them."""

    answers: Tensor  # places in the answer list, int64 [B, k]
    probabilities: Tensor  # among these k, float32 [B, k]


@torch.no_grad()
def rank_answers(model: VqaModel, question: AskedQuestions, answers: AnswerList, top_k: int) -> Ranking:
    """The answers that the decoder finds likeliest, as published.

    The first token, given [CLS], chooses `top_k` of the list; only these are decoded. An answer's score is the
    log-likelihood of its tokens with that of the first one counted twice, which is what the published numbers were
    made with. Memory is bounded by `ROWS` and `TOKENS`, whatever the list; keep the number of questions below `ROWS`.

    Args:
        question: B questions, of `VqaModel.ask`.
        answers: the list.
        top_k: answers to decode, clipped to the list.
    """
    size = len(question.mask)
    starts = answers.input_ids[:1, :1].expand(size, 1)
    log_start = model.text_decoder.mlm_logits(model.decode(starts, question)[:, 0]).float().log_softmax(dim=-1)
    log_first, chosen = log_start[:, answers.input_ids[:, 1]].topk(min(top_k, len(answers.mask)))  # [B, k]

    lengths = answers.mask.sum(dim=1)
    order = lengths[chosen].argsort(dim=1)  # short ones together: less padding is decoded
    log_first, chosen = log_first.gather(1, order), chosen.gather(1, order)
    step = max(ROWS // size, 1)
    rest = [_log_rest(model, question, answers, part) for part in chosen.split(step, dim=1)]
    scores = 2 * log_first + torch.cat(rest, dim=1)
    probabilities, best = scores.softmax(dim=1).sort(descending=True, stable=True)
    return Ranking(chosen.gather(1, best), probabilities)


def _log_rest(model: VqaModel, question: AskedQuestions, answers: AnswerList, chosen: Tensor) -> Tensor:
    """Log-likelihood of all but the first token of the answers `chosen` [B, k]; float32 [B, k]."""
    rows = chosen.T.flatten()  # row r answers question r % B
    ids, mask = answers.input_ids[rows], answers.mask[rows]
    longest = int(mask.sum(dim=1).max())
    states = model.decode(ids[:, : longest - 1], question)[:, 1:]
    wanted = mask[:, 2:longest]
    parts = zip(states[wanted].split(TOKENS), ids[:, 2:longest][wanted].split(TOKENS), strict=True)
    likelihood = torch.cat([model.log_likelihood(*part) for part in parts])
    total = torch.zeros(wanted.shape, device=likelihood.device).masked_scatter(wanted, likelihood).sum(dim=1)
    return total.unflatten(0, (-1, len(question.mask))).T


def tokenize_questions(
    model: VqaModel, questions: Sequence[str], max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """`input_ids` [B, S] and mask, bool [B, S], of questions as written.

    Args:
        model: with its processor.
        questions: B questions.
        max_length: ids kept; as published the model's own in training, all in evaluation.
    """
    positions = model.max_positions
    cleaned = [clean_question(question) for question in questions]
    input_ids, mask = model.processor.tokenizer(cleaned, min(max_length or positions, positions), clean=False)
    return torch.from_numpy(input_ids), torch.from_numpy(mask).bool()


@dataclass
class VqaResult:
    """What a model answers.

    Attributes:
        accuracy: VQA's soft accuracy in percent, over questions that people answered; None without such.
        by_type: the same for yes/no, number and other questions, each with their number.
        outside: questions of which no answer is in the list, so the model cannot be right.
        predictions: an object per question whose image could be read, for a JSONL: question_id, image, question,
            `answer`, `confidence`, `top` with the likeliest answers, and `accuracy` where people answered.
        bad: images that could not be read, with their rows and why.
    """

    accuracy: float | None
    by_type: dict[str, tuple[float, int]]
    outside: int
    predictions: list[dict[str, Any]]
    bad: list[dict[str, str]]

    def figures(self) -> dict[str, float]:
        """The accuracy, where there is one, and that of each type of question."""
        by_type = {f"accuracy_{kind}": accuracy for kind, (accuracy, _) in self.by_type.items()}
        return {} if self.accuracy is None else {"accuracy": self.accuracy, **by_type}

    def table(self) -> list[list[object]]:
        """A line per type of question, and one for all: type, questions, accuracy."""
        rows: list[list[object]] = [[kind, number, percent(share)] for kind, (share, number) in self.by_type.items()]
        return [*rows, ["all", sum(number for _, number in self.by_type.values()), percent(self.accuracy)]]

    def submission(self) -> list[dict[str, Any]]:
        """The rows that the VQA challenge takes."""
        return [{key: row[key] for key in ("question_id", "answer")} for row in self.predictions]


@torch.inference_mode()
def evaluate_vqa(
    model: VqaModel,
    questions: Sequence[Question],
    *,
    top_k: int = 128,
    batch_size: int = 32,
    workers: int = 4,
    top: int = 5,
    share: Share = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> VqaResult:
    """Answer every question from the model's list, and compare with what people said.

    Args:
        model: in evaluation mode, with its processor.
        questions: rows.
        top_k: answers to decode for each, see `rank_answers`.
        batch_size: images, and questions, at once.
        workers: decoding threads.
        top: answers that a prediction lists.
        share: what this process does of the rows; the result is the same in all processes.
        progress: told how many questions were done since the last call.

    Raises:
        DataError: none of the images can be read.
    """
    labels = model.head.labels
    answers = tokenize_answers(labels, model.processor.tokenizer, model.max_positions).to(model.device)
    predictions: dict[int, dict[str, Any]] = {}
    unread: list[tuple[int, str, str]] = []
    references = [(question.image,) for question in questions]
    advance = share.progress(progress, len(questions))
    with share.agree():
        for batch in rows_by_image(model, references, batch_size, workers, lambda *why: unread.append(why), share):
            input_ids, mask = tokenize_questions(model, [questions[row].question for row in batch.rows])
            asked = model.ask(batch.images, input_ids, mask, batch.image_of_row)
            ranking = rank_answers(model, asked, answers, top_k)
            best, shares = ranking.answers[:, :top].tolist(), ranking.probabilities[:, :top].tolist()
            for row, numbers, of_row in zip(batch.rows, best, shares, strict=True):
                predictions[row] = _prediction(questions[row], [labels[number] for number in numbers], of_row)
            advance(len(batch.rows))
    predictions, unread = share.join_rows(predictions, unread)
    bad = left_out(questions, unread, len(predictions))
    return _summary(questions, predictions, labels, bad)


def _prediction(question: Question, answers: list[str], shares: list[float]) -> dict[str, Any]:
    return {
        "question_id": question.question_id,
        "image": question.image,
        "question": question.question,
        "answer": answers[0],
        "confidence": shares[0],
        "top": [{"answer": answer, "confidence": share} for answer, share in zip(answers, shares, strict=True)],
        "accuracy": soft_accuracy(answers[0], question.answers) if question.answers else None,
    }


def _summary(
    questions: Sequence[Question], predictions: dict[int, dict[str, Any]], labels: list[str], bad: list[dict[str, str]]
) -> VqaResult:
    known = {normalise_answer(label) for label in labels}
    in_order = list(predictions.values())
    scores: dict[str, list[float]] = {}
    outside = 0
    for row in predictions:
        people = questions[row].answers
        if people:
            kind = questions[row].answer_type or answer_type(people)
            scores.setdefault(kind, []).append(100.0 * predictions[row]["accuracy"])
            outside += not any(normalise_answer(person) in known for person in people)
    every = [score for of_kind in scores.values() for score in of_kind]
    by_type = {kind: (sum(of_kind) / len(of_kind), len(of_kind)) for kind, of_kind in sorted(scores.items())}
    return VqaResult(sum(every) / len(every) if every else None, by_type, outside, in_order, bad)
