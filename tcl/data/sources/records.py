"""From the rows of a source to pairs: which columns count, where the image is, what is left out. Imports no torch."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.scenes import scenes
from tcl.data.sources.find import DataFile, Source
from tcl.data.sources.shards import Skipped, read_tar
from tcl.data.tables.formats import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    READERS,
    Row,
    images_below,
    numbered_lines,
    parquet_columns,
    read_csv,
    read_parquet,
)
from tcl.data.tokenizer import clean_caption, readable
from tcl.errors import DataError
from tcl.files.remote import is_url, url_path

MAX_CAPTION = 100_000
"""Characters that are kept of a caption; the published cleaning keeps 30 words of it."""

_WORD = re.compile(r"[A-Za-z0-9]")


class Pair(NamedTuple):
    """An image and its captions.

    Args:
        image: a reference that `tcl.data.storage.open.open_binary` opens, or `scenes:` renders: an absolute path, a URL, a
            member of a shard.
        captions: one or more captions as they were written.
        image_id: the id that the source gives, else the image as the source names it.
    """

    image: str
    captions: list[str]
    image_id: str


class _Located(NamedTuple):
    """A row with the file it stands in, the place there, and what its relative image path starts from."""

    file: str
    place: str
    row: Any
    base: str


def read_source(source: Source, images: str | None) -> Iterator[Pair | Skipped]:
    """Pairs of a source, and what gives none.

    Args:
        source: see `tcl.data.sources.find`.
        images: folder or URL that relative image paths start from; by default the place of the file that names them.

    Raises:
        DataError: a file is malformed or cannot be read, or no row meets the source's condition.
    """
    rows: Iterator[_Located | Skipped | Pair] = (row for file in source.files for row in _rows(file, images))
    if source.condition:
        rows = _select(rows, source.text, *source.condition)
    for item in rows:
        if isinstance(item, _Located):
            pair = _to_pair(item.row, item.base)
            yield Skipped(f"{item.file} {item.place}".rstrip(), pair) if isinstance(pair, str) else pair
        else:
            yield item


def _rows(file: DataFile, images: str | None) -> Iterator[_Located | Skipped | Pair]:
    if file.name.startswith(scenes.PREFIX):
        yield from (Pair(reference, captions, reference) for reference, captions in scenes.scene_rows(file.name))
        return
    try:
        if os.path.isdir(file.name):
            yield from _folder_rows(Path(file.name))
            return
        path, base = file.local(), images if images is not None else _parent(file.location)
        if file.suffix == ".tar":
            for item in read_tar(path, file.name, file.location):
                yield item if isinstance(item, Skipped) else _Located(file.name, item[0], item[1], "")
            return
        for place, row in _table_rows(path, file):
            yield _Located(file.name, place, row, base)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            reason if file.name in reason else f"cannot read {file.name}: {reason}",
            hint="check that it is there and may be read",
        ) from error


def _parent(location: str) -> str:
    return url_path(location).rpartition("/")[0] if is_url(location) else os.path.dirname(location)


def _table_rows(path: Path, file: DataFile) -> Iterator[Row]:
    """Rows of a file, after a look at the columns of a table: a missing one would fail in every row."""
    reader = READERS[file.suffix]
    rows = reader(path, file.name)
    if reader is read_parquet:
        _check_columns(file.name, parquet_columns(path, file.name))
    for number, (place, row) in enumerate(rows):
        if not number and reader is read_csv:
            _check_columns(file.name, dict.fromkeys(filter(None, row), "text"))
        yield place, row


def _check_columns(name: str, columns: dict[str, str]) -> None:
    for keys, what in ((IMAGE_KEYS, "image"), (CAPTION_KEYS, "caption")):
        if not any(columns.get(key, "bytes") != "bytes" for key in keys):
            found = ", ".join(f"{column} (bytes)" if kind == "bytes" else column for column, kind in columns.items())
            raise DataError(
                f"{name}: no {what} column; its columns are {found}",
                hint=f"one column must be called {', '.join(keys)}" + (" and hold paths" if what == "image" else ""),
            )


def _select(
    rows: Iterator[_Located | Skipped | Pair], source: str, column: str, value: str
) -> Iterator[_Located | Skipped | Pair]:
    found: set[str] = set()
    matched = False
    for item in rows:
        if not isinstance(item, _Located):
            yield item
            continue
        cell = item.row.get(column) if isinstance(item.row, dict) else None
        if cell is not None and str(cell) == value:
            matched = True
            yield item
        elif cell is not None and len(found) < 20:
            found.add(str(cell))
    if not matched:
        values = f"its values: {', '.join(sorted(found))}" if found else f"no row has a column '{column}'"
        raise DataError(f"{source}: no row has {column}={value}", hint=values)


def _to_pair(row: Any, base: str) -> Pair | str:
    """The pair of a row, or why there is none."""
    if not isinstance(row, dict):
        return f"not an object but {type(row).__name__}"
    if None in row:  # more cells than the header has names
        return "more cells than columns (a comma in a caption needs quotes around it)"
    image = _first(row, IMAGE_KEYS)
    if not isinstance(image, str) or not image.strip():
        return _lacking("image", row, IMAGE_KEYS)
    texts = _first(row, CAPTION_KEYS)
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list):
        return _lacking("caption", row, CAPTION_KEYS)
    captions = [readable(text[:MAX_CAPTION]) for text in texts if isinstance(text, str) and _has_words(text)]
    if not captions:
        return "no caption" if not any(texts) else "no words in the caption"
    reference = _resolve(image, base)
    if any(not name.isascii() and readable(name) != name for name in (image, reference)):
        return "the path of its image is not valid Unicode"
    image_id = row.get("image_id")
    return Pair(reference, captions, image if image_id in (None, "") else readable(str(image_id)))


def _lacking(what: str, row: dict[str, Any], keys: Sequence[str]) -> str:
    """`no image`, and which names the row has instead when none of the known ones is among them."""
    names = ", ".join(readable(str(name)) for name in list(row)[:20])
    return f"no {what}" + (f"; it has {names}" if names and not row.keys() & set(keys) else "")


def _has_words(text: str) -> bool:
    # Cleaning keeps letters and digits, so most captions need no cleaning to know.
    text = text[:MAX_CAPTION]
    return _WORD.search(text) is not None or bool(clean_caption(text).strip())


def _first(row: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key)), None)


def _resolve(image: str, base: str) -> str:
    if image.startswith(scenes.PREFIX):
        return image
    if is_url(image):
        return image if not image.startswith("file://") else image[len("file://") :]
    if not base:
        return image
    if is_url(base) and not image.startswith("/"):
        scheme, mark, path = base.partition("://")
        return scheme + mark + posixpath.normpath(posixpath.join(path, image))
    return os.path.abspath(os.path.join(base, image))


def _folder_rows(folder: Path) -> Iterator[_Located | Skipped]:
    names = images_below(folder)
    if not names:
        shards = any(name.endswith(".tar") for name in os.listdir(folder))
        looked_for = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(
            f"{folder}: no images in this folder",
            hint=f"for its shards write '{folder}/*.tar'" if shards else looked_for,
        )
    if not any((folder / name).with_suffix(".txt").is_file() for name in names):
        raise DataError(
            f"{folder}: none of its {len(names)} images has a caption file",
            hint=f"looked for .txt files of the same name, as {Path(names[0]).with_suffix('.txt')}",
        )
    for name in names:
        image = folder / name
        sidecar = image.with_suffix(".txt")
        if not sidecar.is_file():
            yield Skipped(str(image), f"no {sidecar.name} beside it")
            continue
        texts = [line.strip() for _, line in numbered_lines(sidecar) if line.strip()]
        yield _Located(str(image), "", {"image": name, "captions": texts}, str(folder))
