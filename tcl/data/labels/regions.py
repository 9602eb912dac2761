"""Texts about regions of images, with their boxes, from own files.

| column | holds |
|---|---|
| `image` | as in every file of pairs |
| `text` (or `caption`, `sentence`) | what is referred to, as "the dog on the left" |
| `phrase` | the words of a longer text that are meant; without it, all of them |
| `box` | `[x, y, width, height]` in pixels of the image; in a table, four numbers between spaces or commas |
| `proposals` | boxes of a detector to choose from, in `.json` and `.jsonl` |
| `image_id` | finds the proposals of a separate file |
| `split` | rows of each split have figures of their own |

`scenes:` gives a row for each shape of each rendered scene. For training, boxes are not needed: such files are pairs
like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tcl.data.boxes import Box, usable
from tcl.data.labels.statements import check_some, image_of, labelled_rows, text_of
from tcl.data.scenes import scenes
from tcl.data.scenes.labels import shape_box
from tcl.data.sources.columns import USUAL, Columns
from tcl.data.sources.find import find_source
from tcl.data.sources.record import Record, first_value
from tcl.data.storage.open import check_regular
from tcl.data.tokenizer import clean_caption
from tcl.errors import DataError, UsageError

TEXT_KEYS = ("text", "caption", "sentence")
BOX_HINT = "a box is [x, y, width, height] in pixels of the image, x and y being its upper left corner"


class Region(NamedTuple):
    """A text about a part of an image.

    Args:
        place: file and line, for messages.
        image: a reference as those of `tcl.data.pairs.table.Pair`.
        text: as it was written.
        phrase: first word and number of words that are meant, in the cleaned text; None means all of it.
        box: where it is.
        proposals: boxes to choose from; empty without a detector.
        split: empty when the source names none.
    """

    place: str
    image: str
    text: str
    phrase: tuple[int, int] | None
    box: Box
    proposals: list[Box]
    split: str


def read_regions(
    sources: Sequence[str],
    images: str | None = None,
    columns: Columns = USUAL,
    *,
    proposals: str | Path | None = None,
) -> Iterator[Region]:
    """Regions of all sources, in order.

    Args:
        sources: see the module.
        images: folder or URL that relative image paths start from; by default that of the file that names them.
        columns: of images and texts, where they have other names than the usual.
        proposals: a JSON object of `image_id` to boxes, as published for RefCOCO+.

    Raises:
        UsageError: a source does not exist.
        DataError: at the first row without image, text or box, or with one that cannot be used.
    """
    detected = _read_proposals(Path(proposals)) if proposals is not None else None
    number = 0
    for text in sources:
        if text.startswith(scenes.PREFIX):
            rows = _scene_regions(text)
        else:
            rows = (_region(record, columns, detected) for record in labelled_rows(find_source(text), columns, images))
        for row in rows:
            number += 1
            yield row
    check_some(number, sources)


def find_phrase(text: str, phrase: str) -> tuple[int, int] | None:
    """First word and number of words of a phrase in a text, both cleaned; None where it does not occur."""
    words, wanted = clean_caption(text).split(), clean_caption(phrase).split()
    for start in range(len(words) - len(wanted) + 1):
        if wanted and words[start : start + len(wanted)] == wanted:
            return start, len(wanted)
    return None


def _region(record: Record, columns: Columns, detected: dict[str, list[Box]] | None) -> Region:
    place, row = record.where, record.row
    image = image_of(record, first_value(row, columns.image_keys), columns.image_keys)
    text = text_of(record, (columns.text,) if columns.text else TEXT_KEYS, "text")
    if not clean_caption(text).strip():
        raise DataError(f"{place}: no words in the text {text!r}")
    phrase = None
    if row.get("phrase"):
        phrase = find_phrase(text, str(row["phrase"]))
        if phrase is None:
            raise DataError(
                f"{place}: the phrase {str(row['phrase'])!r} does not occur in the text",
                hint="write it word by word as it stands there; only the first 30 words are read",
            )
    boxes = row.get("proposals") or []
    if detected is not None:
        image_id = str(row.get("image_id", ""))
        if image_id not in detected:
            raise DataError(f"{place}: no proposals for image_id {image_id!r}", hint="the column is called image_id")
        boxes = detected[image_id]
    if not isinstance(boxes, list):
        raise DataError(f"{place}: proposals are a list of boxes, not {type(boxes).__name__}", hint=BOX_HINT)
    found = [_box(box, f"{place}: proposal {number}") for number, box in enumerate(boxes, 1)]
    if row.get("box") in (None, ""):
        raise DataError(f"{place}: no box", hint=BOX_HINT)
    split = row.get("split")
    return Region(place, image, text, phrase, _box(row["box"], place), found, "" if split is None else str(split))


def _box(value: Any, place: str) -> Box:
    box = value
    if isinstance(value, str):  # of a table
        try:
            box = [float(part) for part in value.strip().strip("[]()").replace(",", " ").split()]
        except ValueError:
            box = None
    if not usable(box):
        raise DataError(f"{place}: {str(value)[:100]} is no box", hint=BOX_HINT)
    x, y, width, height = box
    return float(x), float(y), float(width), float(height)


def _read_proposals(path: Path) -> dict[str, list[Box]]:
    check_regular(str(path))
    if not path.is_file():
        raise UsageError(f"no such file of proposals: {path}", hint="a JSON object of image_id to boxes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON: {error}", hint="a JSON object of image_id to boxes") from error
    if not isinstance(values, dict) or not all(isinstance(boxes, list) for boxes in values.values()):
        raise DataError(
            f"{path}: no JSON object of image_id to boxes", hint='{"123": [[x, y, width, height], ...], ...}'
        )
    return {
        image_id: [_box(box, f"{path}: image_id {image_id}: proposal {n}") for n, box in enumerate(boxes, 1)]
        for image_id, boxes in values.items()
    }


def _scene_regions(spec: str) -> Iterator[Region]:
    for reference, captions in scenes.scene_rows(spec):
        for shape in scenes.scene(reference).shapes:
            phrase = find_phrase(captions[0], shape.name)
            yield Region(f"{reference} {shape.name}", reference, captions[0], phrase, shape_box(shape), [], "")
