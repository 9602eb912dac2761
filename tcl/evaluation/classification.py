"""Zero-shot classification: the class whose caption is nearest to an image, without any training on the classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl.data.sources.folders import files_in, images_of
from tcl.data.tokenizer import clean_caption
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError, UsageError
from tcl.evaluation.batches import decode_batches
from tcl.evaluation.metrics import NAN_HINT, percent
from tcl.files.names import natural_key
from tcl.models.tcl import TCL

TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of a {}", "there is a {} in the photo", "{}")
"""Captions that a class name is put into when none are given."""

TEXTS = 64
"""Captions encoded at once."""

TOP = 5


@dataclass
class LabelledImages:
    """Images of classes.

    Attributes:
        images: paths, class by class.
        labels: class of each image.
        classes: natural names, in natural order of their folders.
    """

    images: list[str]
    labels: NDArray[np.int64]
    classes: list[str]

    @classmethod
    def from_folder(cls, folder: str | Path) -> LabelledImages:
        """Read a folder that holds one folder of images per class.

        Raises:
            UsageError: there is no such folder.
            DataError: it holds fewer than two class folders, no image, or two folders of one name.
        """
        root = Path(folder)
        if not root.is_dir():
            raise UsageError(f"no such folder: {root}", hint="name a folder that holds one folder of images per class")
        names = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        names.sort(key=natural_key)
        if len(names) < 2:
            raise DataError(
                f"{root}: classification needs at least two folders, one per class; found {len(names)}",
                hint="put the images of each class into a folder of that name",
            )
        classes = [class_name(name) for name in names]
        for row, name in enumerate(classes):
            if not clean_caption(name):
                raise DataError(f"{root / names[row]}: this name holds no words", hint="name folders after classes")
            if name in classes[:row]:
                first = names[classes.index(name)]
                raise DataError(f"{root}: {first} and {names[row]} both mean '{name}'", hint="merge the two folders")
        images: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = files_in(root / name, images_of(root / name), [])
            images += [str(root / name / image) for image in found]
            labels += [label] * len(found)
        if not images:
            raise DataError(f"{root}: no images in its {len(names)} folders", hint="are they one level further down?")
        return cls(images, np.array(labels), classes)


@dataclass
class ClassResult:
    """Figures of one class; the shares are in percent, None for a class without images."""

    name: str
    images: int
    top1: float | None
    top5: float | None
    confused_with: str | None
    """The class that its images were most often taken for, when any were."""


@dataclass
class ClassificationResult:
    """Share of images, in percent, whose class is the nearest, and among the five nearest; and what was left out."""

    top1: float
    top5: float
    mean_per_class: float
    images: int
    classes: list[ClassResult]
    bad: list[dict[str, str]]

    def table(self) -> list[list[object]]:
        """A line per class, their mean, and one for all: class, images, top-1, top-5, what it was taken for."""
        rows: list[list[object]] = [
            [line.name, line.images, percent(line.top1), percent(line.top5), line.confused_with or "-"]
            for line in self.classes
        ]
        rows.append(["mean of classes", self.images, percent(self.mean_per_class), "-", "-"])
        return [*rows, ["all", self.images, percent(self.top1), percent(self.top5), "-"]]


@dataclass
class Prediction:
    """The best classes of an image, nearest first, with their probabilities at the model's temperature."""

    image: str
    label: str
    top: list[tuple[str, float]]


def class_name(folder: str) -> str:
    """The natural name of a class folder: `golden_retriever` is a golden retriever."""
    return " ".join(unicodedata.normalize("NFC", folder).replace("_", " ").split())


def check_templates(templates: Sequence[str]) -> None:
    """Say so when a template has no place for the class name, or none are given.

    Raises:
        UsageError: with the template.
    """
    if not templates:
        raise UsageError("no caption template was given", hint="for example 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(
                f"template '{template}' needs one {{}} for the class name", hint="for example 'a photo of a {}'"
            )


@torch.inference_mode()
def class_vectors(model: TCL, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector per class [classes, E]: the mean of its captions' vectors, normalised again."""
    captions = [template.replace("{}", name) for name in classes for template in templates]
    vectors = [
        model.encode_text(*model.processor.texts(captions[start : start + TEXTS])).text_feat
        for start in range(0, len(captions), TEXTS)
    ]
    return F.normalize(torch.cat(vectors).unflatten(0, (len(classes), len(templates))).mean(dim=1))


@torch.inference_mode()
def evaluate_classification(
    model: TCL,
    folder: str | Path,
    templates: Sequence[str] = TEMPLATES,
    *,
    batch_size: int = 64,
    workers: int = 4,
    share: Share = ALONE,
    predicted: Callable[[Prediction], None] = lambda prediction: None,
    progress: Callable[[int], None] = lambda done: None,
) -> ClassificationResult:
    """Classify the images of a folder of class folders by the captions of the classes.

    Args:
        model: in evaluation mode, with its processor.
        folder: holds one folder of images per class; the folders' names are the classes' (`_` is a space).
        templates: captions with `{}` for the class name; the vectors of a class's captions are averaged.
        batch_size: images at once.
        workers: decoding threads.
        share: what this process does of the images; the result is the same in all processes.
        predicted: told the best classes of every image, in order.
        progress: told how many images were done since the last call.

    Raises:
        UsageError: no such folder, or a template without a place for the name.
        DataError: fewer than two classes, no readable image, or the model's scores are not numbers.
    """
    check_templates(templates)
    data = LabelledImages.from_folder(folder)
    found: dict[int, tuple[list[int], list[float]]] = {}  # of each image the nearest classes, and their probabilities
    unread: list[tuple[int, str, str]] = []
    own, advance = share.rows(len(data.images), batch_size), share.progress(progress, len(data.images))
    with share.agree():
        classes = class_vectors(model, data.classes, templates)
        for batch in decode_batches(model.processor, [data.images[row] for row in own], batch_size, workers):
            unread += [(own[place], data.images[own[place]], error.reason) for place, error in batch.errors.items()]
            if batch.rows:
                sims = model.encode_image(batch.pixels).image_feat @ classes.T
                if sims.isnan().any():
                    raise DataError("similarities are not numbers: the model's weights are not finite", hint=NAN_HINT)
                best = sims.topk(min(TOP, len(data.classes))).indices
                probabilities = (sims / model.temp).softmax(dim=-1).gather(1, best)
                pairs = zip(best.tolist(), probabilities.tolist(), strict=True)
                found |= zip((own[place] for place in batch.rows), pairs, strict=True)
            advance(len(batch))
    found, unread = share.join_rows(found, unread)
    bad = [{"image": image, "reason": reason} for _, image, reason in unread]
    if not found:
        raise DataError(f"{folder}: none of its {len(data.images)} images can be read; the first: {bad[0]['reason']}")
    for row, (labels, shares) in found.items():
        top = [(data.classes[label], probability) for label, probability in zip(labels, shares, strict=True)]
        predicted(Prediction(data.images[row], data.classes[data.labels[row]], top))
    nearest = np.array([labels for labels, _ in found.values()])
    return _result(nearest, data.labels[list(found)], data.classes, bad)


def _result(
    nearest: NDArray[np.int64], labels: NDArray[np.int64], names: list[str], bad: list[dict[str, str]]
) -> ClassificationResult:
    hits = nearest == labels[:, None]
    classes = []
    for label, name in enumerate(names):
        own = labels == label
        count = int(own.sum())
        wrong = nearest[own & ~hits[:, 0], 0]
        classes.append(
            ClassResult(
                name,
                count,
                _percent(hits[own, 0]) if count else None,
                _percent(hits[own].any(axis=1)) if count else None,
                names[int(np.bincount(wrong).argmax())] if len(wrong) else None,
            )
        )
    per_class = [result.top1 for result in classes if result.top1 is not None]
    return ClassificationResult(
        _percent(hits[:, 0]), _percent(hits.any(axis=1)), float(np.mean(per_class)), len(labels), classes, bad
    )


def _percent(hits: NDArray[np.bool_]) -> float:
    return float(100.0 * hits.mean())
