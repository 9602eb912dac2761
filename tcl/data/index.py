"""Every source of image-text pairs becomes one Arrow table. Imports no torch.

| source | what it holds |
|---|---|
| `.json` | a list of `{"image", "caption": text or list of texts, "image_id"?}`, the format of ALBEF and TCL |
| `.jsonl` | one such object per line |
| `.csv`, `.tsv` | a header with these names |
| a folder | images, each with a `.txt` of the same name: one caption per line that is not empty |
| `scenes:` | rendered scenes, see `tcl.data.scenes` |

Other names of `image` and `caption` are in `tcl.data.formats`; columns with any other name are ignored. With
`#COLUMN=VALUE` behind a file (`captions.jsonl#split=train`) only the rows that have that value are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tcl.data import scenes
from tcl.data.captions import clean_caption, readable
from tcl.data.formats import CAPTION_KEYS, IMAGE_KEYS, READERS, Row, images_below, numbered_lines, read_csv
from tcl.data.images import IMAGE_SUFFIXES
from tcl.errors import DataError, UsageError

_SCHEMA = pa.schema(
    [("image", pa.large_string()), ("captions", pa.large_list(pa.large_string())), ("image_id", pa.large_string())]
)
_CHUNK_ROWS = 65536
_REASONS_KEPT = 10


class Pair(NamedTuple):
    """An image and its captions.

    Args:
        image: an absolute path, or a `scenes:` reference.
        captions: one or more captions as they were written.
        image_id: the id that the source gives, else the image as the source names it.
    """

    image: str
    captions: list[str]
    image_id: str


class _Skipped(NamedTuple):
    place: str
    reason: str


class PairIndex:
    """Image-text pairs in the order of their sources.

    Args:
        table: columns `image`, `captions`, `image_id`.
        fingerprint: SHA-256 over all rows; a resumed run compares it to see that it reads the same data.
        skipped: number of rows that were left out because image or caption was missing.
        skipped_reasons: the first of them, each with its place.
    """

    def __init__(
        self, table: pa.Table, fingerprint: str, skipped: int = 0, skipped_reasons: Sequence[str] = ()
    ) -> None:
        self.table = table
        self.fingerprint = fingerprint
        self.skipped = skipped
        self.skipped_reasons = list(skipped_reasons)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> Pair:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return Pair(*(column[row].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[Pair]:
        for batch in self.table.to_batches():
            for values in batch.to_pylist():
                yield Pair(**values)


def read_pairs(sources: Sequence[str], images: str | None = None) -> PairIndex:
    """Read sources of image-text pairs into one index, in the order given.

    A row without image or caption is left out and counted. Whether image files exist is not checked here.

    Args:
        sources: files, folders or `scenes:` specifications; see the module for formats and the `#COLUMN=VALUE` filter.
        images: folder that relative image paths start from; by default the folder of the file that names them.

    Returns:
        the index, with what was skipped.

    Raises:
        UsageError: a source does not exist, or its format is unknown.
        DataError: a source is malformed, or holds no usable pair.
    """
    if not sources:
        raise UsageError("no data was named", hint="name a source, for example --data captions.jsonl or --data scenes:")
    if images is not None and not os.path.isdir(images):
        raise UsageError(f"no such folder of images: {images}")
    builder = _Builder()
    for source in sources:
        kept, skipped, first_skipped = 0, 0, None
        for row in _read(source, images):
            builder.add(row)
            if isinstance(row, _Skipped):
                skipped += 1
                first_skipped = first_skipped or row
            else:
                kept += 1
        if first_skipped and not kept:
            raise DataError(
                f"{source}: none of its {skipped} rows has an image and a caption",
                hint=f"the first one is {first_skipped.place}: {first_skipped.reason}",
            )
        if not kept:
            raise DataError(f"{source} holds no rows", hint="name a source with at least one image and caption")
    return builder.finish()


class _Builder:
    """Collects rows in Arrow chunks, so that Python objects of one chunk only are alive."""

    def __init__(self) -> None:
        self.skipped = 0
        self.reasons: list[str] = []
        self._batches: list[pa.RecordBatch] = []
        self._chunk: list[Pair] = []
        self._digest = hashlib.sha256()

    def add(self, row: Pair | _Skipped) -> None:
        if isinstance(row, _Skipped):
            self.skipped += 1
            if len(self.reasons) < _REASONS_KEPT:
                self.reasons.append(f"{row.place}: {row.reason}")
            return
        self._digest.update(json.dumps(row).encode())
        self._chunk.append(row)
        if len(self._chunk) == _CHUNK_ROWS:
            self._flush()

    def finish(self) -> PairIndex:
        self._flush()
        table = pa.Table.from_batches(self._batches, _SCHEMA).combine_chunks()  # one chunk: constant-time access
        return PairIndex(table, self._digest.hexdigest(), self.skipped, self.reasons)

    def _flush(self) -> None:
        if self._chunk:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._chunk, strict=True), _SCHEMA, strict=True)
            ]
            self._batches.append(pa.record_batch(columns, schema=_SCHEMA))
            self._chunk = []


def _read(source: str, images: str | None) -> Iterator[Pair | _Skipped]:
    if source.startswith(scenes.PREFIX):
        return (Pair(reference, captions, reference) for reference, captions in scenes.scene_rows(source))
    name, condition = _split_condition(source)
    path = Path(name)
    if path.is_dir():
        if condition:
            raise UsageError(f"{source}: a folder has no columns to select by", hint=f"write {name}")
        return _read_folder(path)
    if not path.exists():
        raise UsageError(f"no such file or folder: {name}", hint="check the path given as data")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{name}: unknown data format '{path.suffix}'",
            hint=f"use {', '.join(READERS)}, a folder of images with .txt files, or scenes:",
        )
    rows = reader(path)
    if reader is read_csv:
        rows = _with_columns(rows, path)
    if condition:
        rows = _select(rows, source, *condition)
    base = images if images is not None else str(path.parent)
    return (_to_pair(row, f"{path} {place}", base) for place, row in rows)


def _split_condition(source: str) -> tuple[str, tuple[str, str] | None]:
    """`file.jsonl#split=train` -> `file.jsonl`, (`split`, `train`); a file really called so wins."""
    name, mark, condition = source.rpartition("#")
    if not mark or os.path.exists(source):
        return source, None
    column, equals, value = condition.partition("=")
    if not equals or not column:
        raise UsageError(f"{source}: '#{condition}' is not a condition", hint="write #COLUMN=VALUE, as in #split=train")
    return name, (column, value)


def _with_columns(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    """Rows of a table, after a look at the header: a missing column would fail in every row."""
    for number, (place, row) in enumerate(rows):
        if number == 0:
            for keys, what in ((IMAGE_KEYS, "image"), (CAPTION_KEYS, "caption")):
                if not row.keys() & set(keys):
                    raise DataError(
                        f"{path}: no {what} column; its columns are {', '.join(filter(None, row))}",
                        hint=f"the first line must name one of {', '.join(keys)}",
                    )
        yield place, row


def _select(rows: Iterator[Row], source: str, column: str, value: str) -> Iterator[Row]:
    found: set[str] = set()
    matched = False
    for place, row in rows:
        cell = row.get(column) if isinstance(row, dict) else None
        if cell is not None and str(cell) == value:
            matched = True
            yield place, row
        elif cell is not None and len(found) < 20:
            found.add(str(cell))
    if not matched:
        values = f"its values: {', '.join(sorted(found))}" if found else f"no row has a column '{column}'"
        raise DataError(f"{source}: no row has {column}={value}", hint=values)


def _to_pair(row: Any, place: str, base: str) -> Pair | _Skipped:
    if not isinstance(row, dict):
        return _Skipped(place, f"not an object but {type(row).__name__}")
    if None in row:  # more cells than the header has names
        return _Skipped(place, "more cells than columns (a comma in a caption needs quotes around it)")
    image = _first(row, IMAGE_KEYS)
    if not isinstance(image, str) or not image.strip():
        return _Skipped(place, "no image")
    texts = _first(row, CAPTION_KEYS)
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list):
        return _Skipped(place, "no caption")
    captions = [readable(text) for text in texts if isinstance(text, str) and clean_caption(text).strip()]
    if not captions:
        return _Skipped(place, "no caption" if not any(texts) else "no words in the caption")
    try:
        image.encode("utf-8")
    except UnicodeEncodeError:
        return _Skipped(readable(place), "the path of its image is not valid Unicode")
    image_id = row.get("image_id")
    return Pair(_resolve(image, base), captions, image if image_id in (None, "") else readable(str(image_id)))


def _first(row: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key)), None)


def _resolve(image: str, base: str) -> str:
    if image.startswith(scenes.PREFIX):
        return image
    return os.path.abspath(os.path.join(base, image))


def _read_folder(folder: Path) -> Iterator[Pair | _Skipped]:
    names = images_below(folder)
    if not names:
        raise DataError(f"{folder}: no images in this folder", hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    if not any((folder / name).with_suffix(".txt").is_file() for name in names):
        raise DataError(
            f"{folder}: none of its {len(names)} images has a caption file",
            hint=f"looked for .txt files of the same name, as {Path(names[0]).with_suffix('.txt')}",
        )
    for name in names:
        image = folder / name
        sidecar = image.with_suffix(".txt")
        if not sidecar.is_file():
            yield _Skipped(str(image), f"no {sidecar.name} beside it")
            continue
        texts = [line.strip() for _, line in numbered_lines(sidecar) if line.strip()]
        yield _to_pair({"image": name, "captions": texts}, str(image), str(folder))
