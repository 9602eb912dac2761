"""Records of a source as pairs of an image and its captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tcl.data.sources.columns import Columns
from tcl.data.sources.find import Source
from tcl.data.sources.record import Record, Skipped, Stored, first_value
from tcl.data.sources.records import records
from tcl.data.sources.shards import ENDS, first_image
from tcl.data.tokenizer import clean_caption, readable
from tcl.errors import without_secrets

MAX_CAPTION = 100_000
"""Characters that are kept of a caption; the published cleaning keeps 30 words of it."""

_WORD = re.compile(r"[A-Za-z0-9]")


class Pair(NamedTuple):
    """An image and its captions.

    Args:
        image: a reference that `tcl.data.images.decode.decode` reads: an absolute path, a URL, a member of a shard, a
            cell of a table, a rendered scene.
        captions: one or more captions as they were written.
        image_id: the id that the source gives, else the image as the source names it.
    """

    image: str
    captions: list[str]
    image_id: str


def pairs_of(source: Source, columns: Columns, images: str | None = None) -> Iterator[Pair | Skipped]:
    """Pairs of a source, and what gives none; arguments and errors as of `records`."""
    for item in records(source, columns, images):
        if isinstance(item, Skipped):
            yield item
            continue
        image = first_value(item.row, columns.image_keys) if isinstance(item.row, dict) else None
        if isinstance(image, list) and image and isinstance(image[0], Stored):
            image, second = first_image(image)
            yield from (Skipped(item.where, f"{name} is a second one of this key, {ENDS}") for name in second)
        pair = _pair(item, image, columns)
        yield Skipped(item.where, pair) if isinstance(pair, str) else pair


def _pair(record: Record, image: Any, columns: Columns) -> Pair | str:
    """The pair of a record, or why there is none."""
    row = record.row
    if not isinstance(row, dict):
        return f"not an object but {type(row).__name__}"
    if record.problem:
        return record.problem
    if isinstance(image, Stored):
        reference, image_id = image.reference, f"{record.file}!{image.name or image.reference.rpartition('!')[2]}"
    elif isinstance(image, str) and image.strip():
        reference, image_id = record.reference(image), image
    else:
        return _lacking("image", row, columns.image_keys)
    texts = record.texts(columns.text_keys)
    captions = [readable(text[:MAX_CAPTION]) for text in texts if _has_words(text)]
    if not captions:
        return "no words in the caption" if any(texts) else _lacking("caption", row, columns.text_keys)
    if not reference.isascii() and readable(reference) != reference:
        return "the name of its image is not Unicode"
    given = row.get("image_id")
    return Pair(reference, captions, readable(without_secrets(image_id if given in (None, "") else str(given))))


def _lacking(what: str, row: dict[str, Any], keys: Sequence[str]) -> str:
    """`no image`, and which names the row has instead when none of the known ones is among them."""
    names = ", ".join(readable(str(name)) for name in list(row)[:20])
    return f"no {what}" + (f"; it has {names}" if names and not row.keys() & set(keys) else "")


def _has_words(text: str) -> bool:
    # Cleaning keeps letters and digits, so most captions need no cleaning to know.
    text = text[:MAX_CAPTION]
    return _WORD.search(text) is not None or bool(clean_caption(text).strip())
