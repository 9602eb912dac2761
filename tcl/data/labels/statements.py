"""Texts with labels about one image or two, from published, original and own files.

| task | columns of a row | also |
|---|---|---|
| entailment | `image`, `text` (or `sentence`, `hypothesis`), `label` | SNLI-VE and e-SNLI-VE |
| nlvr2 | `image0`, `image1` (or a list `images`), `text` (or `sentence`), `label` | NLVR2's own `.jsonl` |

Files are tables or shards, or a folder of images with a `metadata` file, as `tcl.data.sources.records` reads them; a
source is written as in `tcl.data.sources.find`. Questions have a module of their own. A row that cannot be used is an
error: rather one more start than a model of less data than it was given.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tcl.data.labels.classes import ENTAILMENT, NLVR2
from tcl.data.sources.columns import USUAL, Columns
from tcl.data.sources.find import DataFile, Source, find_source
from tcl.data.sources.folders import files_in, is_metadata
from tcl.data.sources.record import Record, Skipped, Stored, first_value
from tcl.data.sources.records import RowReader, read_table, records
from tcl.data.sources.shards import first_image
from tcl.data.tables.formats import READERS
from tcl.data.tokenizer import readable
from tcl.errors import DataError, UsageError
from tcl.files.names import natural_key

TEXT_KEYS = ("text", "sentence", "hypothesis", "sentence2", "caption")
FLICKR_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")
"""Names under which SNLI-VE and its corrections hold the image."""

NO_CONSENSUS = "-"
"""SNLI's label of rows that its annotators did not agree on."""

PUBLISHED_LABELS = {"entailment": ENTAILMENT, "nlvr2": NLVR2}

StatementTask = Literal["entailment", "nlvr2"]


class Statement(NamedTuple):
    """A text about one image, or about two.

    Args:
        place: file and line, for messages.
        images: references as those of `tcl.data.pairs.table.Pair`: one for entailment, two for nlvr2.
        text: as it was written.
        label: None in a test file without labels.
    """

    place: str
    images: tuple[str, ...]
    text: str
    label: str | None


def labelled_rows(
    source: Source, columns: Columns, images: str | None, read: RowReader = read_table
) -> Iterator[Record]:
    """Records of a source, of which every one counts; see `records`.

    Raises:
        UsageError: it holds no annotations, or has a weight.
        DataError: it is malformed, cannot be read, or holds something other than objects.
    """
    if source.weight != 1:
        raise UsageError(f"{source.text}: a file of annotations takes no weight", hint="leave out the @NUMBER")
    for file in source.files:
        check_annotated(file)
    for item in records(source, replace(columns, kind="row"), images, read=read):
        if isinstance(item, Skipped):
            raise DataError(f"{item.place}: {item.reason}")
        if not isinstance(item.row, dict):
            raise DataError(f"{item.where}: not an object but {type(item.row).__name__}")
        if item.problem:
            raise DataError(f"{item.where}: {item.problem}")
        yield item


def check_annotated(file: DataFile) -> None:
    """Refuse `scenes:`, images, and folders without a metadata file, which hold images and captions only."""
    if file.suffix in (*READERS, ".tar") or (
        os.path.isdir(file.name) and len(files_in(Path(file.name), is_metadata, []))
    ):
        return
    raise UsageError(f"{file.name}: no file of annotations", hint=f"use {', '.join(READERS)}, or .tar")


def image_of(record: Record, value: Any, keys: Sequence[str]) -> str:
    """The reference of an image that the row names in one of these columns.

    Raises:
        DataError: it names none.
    """
    if isinstance(value, list) and value and isinstance(value[0], Stored):  # of a shard
        value, _ = first_image(value)
    if isinstance(value, Stored):
        return value.reference
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{record.where}: no image", hint=f"the column is called {' or '.join(keys)}")
    if readable(value) != value:
        raise DataError(f"{record.where}: the name of its image is not Unicode", hint="rename it")
    return record.reference(value)


def text_of(record: Record, keys: Sequence[str], what: str) -> str:
    """The first of these columns that has a text.

    Raises:
        DataError: none has.
    """
    for key in keys:
        if texts := [text.strip() for text in record.texts((key,)) if text.strip()]:
            return readable(texts[0])
    raise DataError(f"{record.where}: no {what}", hint=f"the column is called {' or '.join(keys)}")


def check_some(number: int, sources: Sequence[str]) -> None:
    """Refuse sources without a row."""
    if not number:
        raise DataError(
            f"{', '.join(sources)}: no rows", hint="name a file with at least one, and check its #COLUMN=VALUE"
        )


def read_statements(
    task: StatementTask,
    sources: Sequence[str],
    images: str | None = None,
    columns: Columns = USUAL,
    *,
    labels: Sequence[str] | None = None,
    need_labels: bool = True,
) -> Iterator[Statement]:
    """Statements of all sources, in order. Rows of SNLI without consensus are passed over.

    Args:
        task: tells how many images belong to a text.
        sources: see the module.
        images: folder or URL that relative image paths start from; by default that of the file that names them.
        columns: of images and texts, where they have other names than the usual.
        labels: those that the model knows; any other is an error.
        need_labels: False for a test file without labels.

    Raises:
        UsageError: a source does not exist.
        DataError: at the first row with too few images, no text, no label, or one that is not in `labels`.
    """
    number = 0
    image_keys = columns.image_keys if columns.image else (*columns.image_keys, *FLICKR_KEYS)
    text_keys = (columns.text,) if columns.text else TEXT_KEYS
    for source in map(find_source, sources):
        for record in labelled_rows(source, columns, images):
            if record.row.get("gold_label") == NO_CONSENSUS:
                continue
            number += 1
            names = _two_images(record) if task == "nlvr2" else [_one_image(record.row, image_keys)]
            references = tuple(image_of(record, name, columns.image_keys) for name in names)
            label = _label(task, record, labels, need_labels)
            yield Statement(record.where, references, text_of(record, text_keys, "text"), label)
    check_some(number, sources)


def label_set(task: StatementTask, labels: Iterable[str]) -> list[str]:
    """The classes of a task, from the labels of its training rows: the published ones in their order, or one's own.

    Raises:
        DataError: there is one class only.
    """
    found = set(labels)
    if len(found) < 2:
        raise DataError(
            f"all rows have the label {', '.join(found)!r}", hint="there is nothing to learn from one class"
        )
    published = PUBLISHED_LABELS[task]
    return list(published) if found <= set(published) else sorted(found, key=natural_key)


def _one_image(row: dict[str, Any], keys: Sequence[str]) -> Any:
    name = first_value(row, keys)
    # The published files, and SNLI-VE, name Flickr30k's photographs by their numbers.
    return f"{name}.jpg" if isinstance(name, str | int) and str(name).isdecimal() else name


def _two_images(record: Record) -> list[Any]:
    row = record.row
    names = first_value(row, ("images",)) or [row[key] for key in ("image0", "image1") if row.get(key)]
    if not names and isinstance(row.get("identifier"), str):
        names = _nlvr2_images(row["identifier"], row.get("directory"))
    if not isinstance(names, list) or len(names) != 2:
        count = len(names) if isinstance(names, list) else 1
        raise DataError(
            f"{record.where}: two images are needed, and it names {count}",
            hint='write image0 and image1, or "images": [..., ...]',
        )
    return names


def _nlvr2_images(identifier: str, directory: Any) -> list[str]:
    """`dev-850-0-1` is sentence 1 about the images `dev/dev-850-0-img0.png` and `...-img1.png`."""
    pair, _, _ = identifier.rpartition("-")
    folder = identifier.partition("-")[0] + (f"/{directory}" if directory is not None else "")
    return [f"{folder}/{pair}-img{number}.png" for number in (0, 1)] if pair else []


def _label(task: StatementTask, record: Record, labels: Sequence[str] | None, needed: bool) -> str | None:
    value = first_value(record.row, ("label", "gold_label"))
    if value is None:
        if needed:
            raise DataError(f"{record.where}: no label", hint="the column is called label")
        return None
    if not isinstance(value, str | int):
        raise DataError(f"{record.where}: a label is a text, not {value!r}")
    label = readable(str(value).strip())
    if task == "nlvr2" and label.lower() in ("true", "false"):
        label = label.capitalize()
    if labels is not None and label not in labels:
        close = difflib.get_close_matches(label, labels, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(labels[:20])}"
        raise DataError(f"{record.where}: unknown label {label!r}", hint=known)
    return label
