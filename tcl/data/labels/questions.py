"""Questions about images with people's answers, from published, original and own files.

A row has `image`, `question`, and `answer` or `answers`: one text, or a list with what each person said; in a table,
several answers stand between bars (`dog|dog|puppy`). VQA v2's questions and annotations are two files: name both.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tcl.data.labels.statements import check_annotated, check_some, image_of, labelled_rows, text_of
from tcl.data.sources.columns import USUAL, Columns
from tcl.data.sources.find import DataFile, find_source
from tcl.data.sources.record import Record, first_value, unreadable
from tcl.data.sources.records import read_table
from tcl.data.tables.formats import first_mark, numbered_lines, read_json
from tcl.data.tables.json_stream import json_object
from tcl.data.tokenizer import readable
from tcl.errors import DataError, UsageError

VISUAL_GENOME_WEIGHT = 0.5
"""Of an answer of Visual Genome: one person gave it, not ten."""

_SUBSET = re.compile(r"(train|val|test)(?:-dev)?(20\d\d)")


class Question(NamedTuple):
    """A question about an image.

    Args:
        place: file and line, for messages.
        question_id: as the source names it, else the number of the row.
        image: a reference as those of `tcl.data.pairs.table.Pair`.
        question: as it was written.
        answers: what each person answered; empty in a test file.
        weights: of each different answer, in training.
        answer_type: `yes/no`, `number` or `other`, where the source says it.
    """

    place: str
    question_id: int | str
    image: str
    question: str
    answers: list[str]
    weights: dict[str, float]
    answer_type: str | None


def read_questions(
    sources: Sequence[str],
    images: str | None = None,
    columns: Columns = USUAL,
    *,
    need_answers: bool = True,
) -> Iterator[Question]:
    """Questions of all sources, in order.

    Args:
        sources: see the module; of VQA v2's two files, in any order.
        images: folder or URL that relative image paths start from; by default that of the file that names them.
        columns: of images and questions, where they have other names than the usual.
        need_answers: False for a test file without answers.

    Raises:
        UsageError: a source does not exist.
        DataError: at the first row without image, without question or, where needed, without answer.
    """
    found = [find_source(source) for source in sources]
    answers = _VqaAnswers(file for source in found for file in source.files)
    number = 0
    for source in found:
        for record in labelled_rows(source, columns, images, answers.questions):
            number += 1
            yield _question(record, number, columns, need_answers)
    if answers.rows and not number:
        raise DataError(
            f"{', '.join(sources)}: answers without their questions", hint="name VQA's file of questions too"
        )
    check_some(number, sources)


def answer_list(questions: Iterable[Question], limit: int | None = None) -> list[str]:
    """The answers that occur, the most frequent first, at most `limit`; equally frequent ones by the alphabet."""
    counts = Counter(answer for question in questions for answer in question.answers)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:limit]


def read_answer_list(path: Path) -> list[str]:
    """An answer list as published, a `.json` list, or a text file with one answer per line; blank ones do not count.

    Raises:
        UsageError: there is no such file.
        DataError: it is malformed, empty, or names an answer twice.
    """
    if not path.is_file():
        raise UsageError(f"no such answer list: {path}")
    items: Iterator[tuple[str, Any]] = (
        read_json(path)
        if path.suffix.lower() == ".json"
        else ((f"line {number}", line) for number, line in numbered_lines(path))
    )
    seen: dict[str, str] = {}
    for place, answer in items:
        if not isinstance(answer, str):
            raise DataError(f"{path} {place}: {answer!r} is no answer", hint="write a list of texts")
        answer = readable(answer.strip())
        if not answer:  # lists in use have such rows
            continue
        if answer in seen:
            raise DataError(
                f"{path} {place}: {answer!r} is there already, in {seen[answer]}", hint="remove one of them"
            )
        seen[answer] = place
    if not seen:
        raise DataError(f"{path}: the answer list is empty")
    return list(seen)


def _question(record: Record, number: int, columns: Columns, need_answers: bool) -> Question:
    row = record.row
    answers = _answers(row)
    if need_answers and not answers:
        raise DataError(
            f"{record.where}: no answer",
            hint="the column is called answer or answers; of VQA v2, name the file of annotations too",
        )
    if row.get("dataset") == "vg":
        weights = dict.fromkeys(answers, VISUAL_GENOME_WEIGHT)
    else:
        weights = {answer: count / len(answers) for answer, count in Counter(answers).items()}
    image = image_of(record, first_value(row, columns.image_keys), columns.image_keys)
    question_id = row.get("question_id")
    if not isinstance(question_id, int | str) or question_id == "":
        question_id = number
    kind = row.get("answer_type")
    question = text_of(record, (columns.text or "question",), "question")
    return Question(
        record.where, question_id, image, question, answers, weights, kind if isinstance(kind, str) else None
    )


def _answers(row: dict[str, Any]) -> list[str]:
    value = row.get("answer")
    if value in (None, "", []):
        value = row.get("answers")
        value = value.split("|") if isinstance(value, str) else value
    items = value if isinstance(value, list) else [value]
    texts = [item.get("answer") if isinstance(item, dict) else item for item in items]
    # A bare number is a fair answer to "how many", and what JSON makes of it.
    given = (str(text).strip() for text in texts if isinstance(text, str | int | float))
    return [sys.intern(readable(text)) for text in given if text]  # few different ones, millions of times


class _VqaAnswers:
    """The answers of VQA v2, which are in other files than the questions.

    Attributes:
        rows: answers and their type by the id of the question.
    """

    def __init__(self, files: Iterable[DataFile]) -> None:
        self.rows: dict[Any, dict[str, Any]] = {}
        self._objects: set[str] = set()  # names of files that hold an object; all others are tables
        for file in files:
            check_annotated(file)
            try:
                if file.suffix == ".json" and first_mark(file.local()) == b"{":
                    self._objects.add(file.name)
                    self._read(file)
            except OSError as error:
                raise unreadable(file.name, error) from error

    def _read(self, file: DataFile) -> None:
        with file.local().open("rb") as stream:
            known = False
            for key, item in json_object(stream, file.name):
                if key == "questions":
                    return
                if key == "annotations" and isinstance(item, dict):
                    known = True
                    kept = {"answers": _answers(item), "answer_type": item.get("answer_type")}
                    self.rows[item.get("question_id")] = kept
        if not known:
            raise DataError(
                f"{file.name}: neither questions nor annotations of VQA v2",
                hint='write a list of rows: [{"image": ..., "question": ..., "answer": ...}, ...]',
            )

    def questions(self, file: DataFile) -> Iterator[tuple[str, Any]]:
        """Rows of a file; nothing of one that holds answers."""
        if file.name not in self._objects:
            yield from read_table(file)
            return
        subset = _SUBSET.search(Path(file.name).name)
        number = 0
        with file.local().open("rb") as stream:
            for key, item in json_object(stream, file.name):
                if key == "data_subtype":
                    subset = _SUBSET.search(str(item)) or subset
                elif key == "questions":
                    number += 1
                    yield f"question {number}", self._joined(item, subset) if isinstance(item, dict) else item

    def _joined(self, row: dict[str, Any], subset: re.Match[str] | None) -> dict[str, Any]:
        joined = {**row, **self.rows.get(row.get("question_id"), {})}
        if "image" not in row and subset and isinstance(row.get("image_id"), int):
            folder = subset[1] + subset[2]  # test-dev asks about images of test
            joined["image"] = f"{folder}/COCO_{folder}_{row['image_id']:012d}.jpg"
        return joined
