"""Texts with labels about one image or two, from published, original and own files.

| task | columns of a row | also |
|---|---|---|
| entailment | `image`, `text` (or `sentence`, `hypothesis`), `label` | SNLI-VE and e-SNLI-VE |
| nlvr2 | `image0`, `image1` (or a list `images`), `text` (or `sentence`), `label` | NLVR2's own `.jsonl` |

Files are JSON, JSONL, CSV, TSV or Parquet; a source is written as in `tcl.data.sources.find`. Questions have a module
of their own. A row that cannot be used is an error: rather one more start than a model of less data than it was given.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from tcl.data.labels.classes import ENTAILMENT, NLVR2
from tcl.data.scenes import scenes
from tcl.data.sources.find import DataFile, Source, find_source
from tcl.data.tables.formats import IMAGE_KEYS, READERS
from tcl.data.tokenizer import readable
from tcl.errors import DataError, UsageError
from tcl.files.names import natural_key
from tcl.files.remote import is_url, url_path

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


class Located(NamedTuple):
    """A row, where it stands, and what relative image paths in it start from."""

    place: str
    row: dict[str, Any]
    base: str

    def image(self, name: Any) -> str:
        """The reference of an image that the row names.

        Raises:
            DataError: it names none.
        """
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{self.place}: no image", hint=f"the column is called {' or '.join(IMAGE_KEYS)}")
        if name.startswith(scenes.PREFIX) or is_url(name):
            return name
        if is_url(self.base):
            return f"{self.base.rstrip('/')}/{name}"
        return os.path.abspath(os.path.join(self.base, name))

    def text(self, keys: Sequence[str], what: str) -> str:
        """The first of these columns that has a text.

        Raises:
            DataError: none has.
        """
        for key in keys:
            value = self.row.get(key)
            if isinstance(value, str) and value.strip():
                return readable(value.strip())
        raise DataError(f"{self.place}: no {what}", hint=f"the column is called {' or '.join(keys)}")


RowReader = Callable[[DataFile], Iterator[tuple[str, Any]]]


def read_table(file: DataFile) -> Iterator[tuple[str, Any]]:
    """Rows of a file by its suffix, each with its place."""
    return READERS[file.suffix](file.local(), file.name)


def located_rows(source: Source, images: str | None, read: RowReader = read_table) -> Iterator[Located]:
    """Rows of a source that meet its condition.

    Raises:
        UsageError: it is no file of rows, or has a weight.
        DataError: it is malformed, cannot be read, or holds something other than objects.
    """
    if source.weight != 1:
        raise UsageError(f"{source.text}: a file of annotations takes no weight", hint="leave out the @NUMBER")
    column, value = source.condition or ("", "")
    for file in source.files:
        check_table(file)
        base = images if images is not None else _parent(file.location)
        try:
            for place, row in read(file):
                place = f"{file.name} {place}"
                if not isinstance(row, dict):
                    raise DataError(f"{place}: not an object but {type(row).__name__}")
                if None in row:
                    raise DataError(
                        f"{place}: more cells than columns", hint="a comma in a text needs quotes around it"
                    )
                if not column or str(row.get(column)) == value:
                    yield Located(place, row, base)
        except OSError as error:
            raise DataError(f"cannot read {file.name}: {error.strerror or error}") from error


def check_table(file: DataFile) -> None:
    """Refuse folders, shards and `scenes:`, which hold images and captions only."""
    if file.suffix not in READERS:
        raise UsageError(f"{file.name}: no file of annotations", hint=f"use {', '.join(READERS)}")


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
    *,
    labels: Sequence[str] | None = None,
    need_labels: bool = True,
) -> Iterator[Statement]:
    """Statements of all sources, in order. Rows of SNLI without consensus are passed over.

    Args:
        task: tells how many images belong to a text.
        sources: see the module.
        images: folder or URL that relative image paths start from; by default that of the file that names them.
        labels: those that the model knows; any other is an error.
        need_labels: False for a test file without labels.

    Raises:
        UsageError: a source does not exist.
        DataError: at the first row with too few images, no text, no label, or one that is not in `labels`.
    """
    number = 0
    for source in map(find_source, sources):
        for located in located_rows(source, images):
            if located.row.get("gold_label") == NO_CONSENSUS:
                continue
            number += 1
            names = _two_images(located) if task == "nlvr2" else [_one_image(located.row)]
            references = tuple(located.image(name) for name in names)
            label = _label(task, located, labels, need_labels)
            yield Statement(located.place, references, located.text(TEXT_KEYS, "text"), label)
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


def _one_image(row: dict[str, Any]) -> Any:
    name = next((row[key] for key in (*IMAGE_KEYS, *FLICKR_KEYS) if row.get(key)), None)
    # The published files, and SNLI-VE, name Flickr30k's photographs by their numbers.
    return f"{name}.jpg" if isinstance(name, str | int) and str(name).isdecimal() else name


def _two_images(located: Located) -> list[Any]:
    row = located.row
    names = row.get("images") or [row[key] for key in ("image0", "image1") if row.get(key)]
    if not names and isinstance(row.get("identifier"), str):
        names = _nlvr2_images(row["identifier"], row.get("directory"))
    if not isinstance(names, list) or len(names) != 2:
        count = len(names) if isinstance(names, list) else 1
        raise DataError(
            f"{located.place}: two images are needed, and it names {count}",
            hint='write image0 and image1, or "images": [..., ...]',
        )
    return names


def _nlvr2_images(identifier: str, directory: Any) -> list[str]:
    """`dev-850-0-1` is sentence 1 about the images `dev/dev-850-0-img0.png` and `...-img1.png`."""
    pair, _, _ = identifier.rpartition("-")
    folder = identifier.partition("-")[0] + (f"/{directory}" if directory is not None else "")
    return [f"{folder}/{pair}-img{number}.png" for number in (0, 1)] if pair else []


def _label(task: StatementTask, located: Located, labels: Sequence[str] | None, needed: bool) -> str | None:
    value = next((located.row[key] for key in ("label", "gold_label") if located.row.get(key) not in (None, "")), None)
    if value is None:
        if needed:
            raise DataError(f"{located.place}: no label", hint="the column is called label")
        return None
    if not isinstance(value, str | int):
        raise DataError(f"{located.place}: a label is a text, not {value!r}")
    label = readable(str(value).strip())
    if task == "nlvr2" and label.lower() in ("true", "false"):
        label = label.capitalize()
    if labels is not None and label not in labels:
        close = difflib.get_close_matches(label, labels, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(labels[:20])}"
        raise DataError(f"{located.place}: unknown label {label!r}", hint=known)
    return label


def _parent(location: str) -> str:
    return url_path(location).rpartition("/")[0] if is_url(location) else os.path.dirname(location)
