"""What a model makes of some validation rows, for the report: nearest captions, answers, classes, boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from PIL import Image, ImageDraw

from tcl.data.images.decode import ImageError, decode
from tcl.data.images.thumbnail import thumbnail
from tcl.data.labels.questions import Question
from tcl.data.labels.regions import Box, Region
from tcl.data.labels.statements import Statement
from tcl.data.pairs.table import PairIndex
from tcl.errors import DataError
from tcl.evaluation.grounding import evaluate_grounding
from tcl.evaluation.statements import evaluate_statements
from tcl.evaluation.vqa import evaluate_vqa
from tcl.models.classifier import Classifier
from tcl.models.tcl import TCL, TextOutput
from tcl.models.vqa import VqaModel
from tcl.report.page import LabelSample, ReportSample

CANDIDATES = 64  # pairs whose captions compete
RERANKED = 16  # of them, by vectors, that the fusion encoder looks at
NEAREST = 3  # captions that are shown
SHOWN = 8  # rows
TRUE_BOX, FOUND_BOX = (0, 160, 60), (220, 40, 40)  # green, red

Row = TypeVar("Row")


@torch.inference_mode()
def collect_samples(model: TCL, index: PairIndex, count: int = SHOWN) -> list[ReportSample]:
    """Pairs from all over the data with the captions nearest to each image, by vectors and by matching.

    The model's mode (training or evaluation) is as it was afterwards, and so is the state of every generator.

    Args:
        model: with its processor.
        index: the pairs; at most `CANDIDATES` of them, evenly spaced, give the captions to choose from.
        count: how many to show; images that cannot be read are left out.
    """
    size = min(len(index), CANDIDATES)
    pairs = [index[place * len(index) // size] for place in range(size)]
    captions = list(dict.fromkeys(pair.captions[0] for pair in pairs))
    if not captions:
        return []
    with _evaluating(model):
        texts = model.encode_text(*model.processor.texts(captions))
        samples: list[ReportSample] = []
        step = max(size // count, 1)
        for pair in [pair for start in range(step) for pair in pairs[start::step]]:
            if len(samples) == count:
                break
            try:
                picture = decode(pair.image)
            except ImageError:
                continue
            samples.append(_sample(model, picture, pair.captions[0], captions, texts))
        return samples


def answer_samples(model: VqaModel, questions: Sequence[Question]) -> list[LabelSample]:
    """Questions from all over the data with the likeliest answers."""
    rows = _spread(questions)
    try:
        with _evaluating(model):
            said = evaluate_vqa(model, rows, batch_size=len(rows), workers=1).predictions
    except DataError:  # no image can be read
        return []
    answers = {row.question_id: list(dict.fromkeys(row.answers)) for row in rows}
    return [
        LabelSample(
            [thumbnail(row["image"])],
            row["question"],
            answers[row["question_id"]],
            [(best["answer"], best["confidence"]) for best in row["top"]],
        )
        for row in said
    ]


def statement_samples(model: Classifier, statements: Sequence[Statement]) -> list[LabelSample]:
    """Texts from all over the data, about one image or two, with the likeliest classes."""
    rows = _spread(statements)
    try:
        with _evaluating(model):
            said = evaluate_statements(model, rows, batch_size=len(rows), workers=1).predictions
    except DataError:
        return []
    return [
        LabelSample(
            [thumbnail(image) for image in row["images"]],
            row["text"],
            [row["label"]],
            [(best["label"], best["confidence"]) for best in row["top"]],
        )
        for row in said
    ]


def region_samples(model: TCL, regions: Sequence[Region]) -> list[LabelSample]:
    """Texts from all over the data with the box that was meant, in green, and the one that was found, in red."""
    rows = _spread(regions)
    try:
        with _evaluating(model):
            said = evaluate_grounding(model, rows, batch_size=len(rows), workers=1).predictions
    except DataError:
        return []
    return [
        LabelSample(
            [thumbnail(_framed(decode(row["image"]), row["box"], row["predicted"]))],
            row["text"],
            note=f"IoU {row['iou']:.2f}; the peak of the heat map lies {'in' if row['peak_inside'] else 'outside'} the "
            "box that was meant (green; red: found)",
        )
        for row in said
    ]


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Some of the rows, evenly spaced."""
    count = min(len(rows), SHOWN)
    return [rows[place * len(rows) // count] for place in range(count)]


@contextmanager
def _evaluating(model: TCL) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _framed(picture: Image.Image, meant: Box, found: Box) -> Image.Image:
    framed = picture.copy()
    width = max(max(picture.size) // 100, 1)
    for (left, top, across, down), colour in ((meant, TRUE_BOX), (found, FOUND_BOX)):
        corners = (left, top, left + max(across, 1), top + max(down, 1))
        ImageDraw.Draw(framed).rectangle(corners, outline=colour, width=width)
    return framed


def _sample(model: TCL, picture: Image.Image, own: str, captions: list[str], texts: TextOutput) -> ReportSample:
    image = model.encode_image(model.processor.images([picture]))
    cosines = (image.image_feat.float() @ texts.text_feat.float().T)[0]
    best = cosines.topk(min(RERANKED, len(captions))).indices
    chosen = TextOutput(*(part[best] for part in texts))
    matches = model.match(image, chosen).float().softmax(dim=-1)[:, 1]
    by_vectors = [(captions[place], cosines[place].item()) for place in best[:NEAREST].tolist()]
    order = matches.argsort(descending=True)[:NEAREST].tolist()
    by_matching = [(captions[best[place]], matches[place].item()) for place in order]
    return ReportSample(thumbnail(picture), own, by_vectors, by_matching)
