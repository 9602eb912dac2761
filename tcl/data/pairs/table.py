"""Every source of image-text pairs becomes rows of one Arrow table.

| source | what it holds |
|---|---|
| `.json` | a list of `{"image", "caption": text or list of texts, "image_id"?}`, the format of ALBEF and TCL |
| `.jsonl` | one such object per line |
| `.csv`, `.tsv` | a header with these names; cells between commas, semicolons or tabs |
| `.parquet` | columns with these names; of images their paths, URLs or bytes |
| `.tar` | a shard: `KEY.jpg` and the like, with `KEY.txt` or `KEY.json`, see `tcl.data.sources.shards` |
| a folder | images, each with a `.txt` of the same name: one caption per line that is not empty; or a `metadata` file |
| a folder of these | shards, or Parquet files |
| `scenes:` | rendered scenes, see `tcl.data.scenes.scenes` |

Other names of `image` and `caption` are in `tcl.data.sources.columns`; columns with any other name are ignored. URLs,
globs, braces, the condition `#COLUMN=VALUE` and the weight `@NUMBER` are in `tcl.data.sources.find`. How each kind of
source is read is in `tcl.data.sources.records`, for training and for `tcl embed` alike.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tcl.data.arrow_file import IndexFile, open_cached, write_index
from tcl.data.pairs.pair import MAX_CAPTION, Pair, pairs_of
from tcl.data.sources.columns import USUAL, Columns
from tcl.data.sources.find import Source, SourceRows, find_source
from tcl.data.sources.record import Skipped
from tcl.data.tokenizer import readable
from tcl.errors import DataError, UsageError, without_secrets
from tcl.files.cache import locked
from tcl.files.named import allow
from tcl.files.remote import is_url

_SCHEMA = pa.schema(
    [("image", pa.large_string()), ("captions", pa.large_list(pa.large_string())), ("image_id", pa.large_string())]
)
_VERSION = 3  # of what is cached: raise it when the same sources would give other rows
_BATCH_ROWS = 65536
_BATCH_CHARACTERS = 1 << 26  # a batch ends here too, so that long captions do not fill the memory
_PROGRESS_ROWS = 1024
_READ_ROWS = 4096
_REASONS_KEPT = 10


class PairIndex:
    """Image-text pairs in the order of their sources.

    Args:
        table: columns `image`, `captions`, `image_id`.
        fingerprint: SHA-256 over all rows; a resumed run compares it to see that it reads the same data.
        skipped: number of rows that were left out because image or caption was missing or unusable.
        skipped_reasons: the first of them, each with its place.
        parts: the rows of each source; by default one of all rows.
    """

    def __init__(
        self,
        table: pa.Table,
        fingerprint: str,
        skipped: int = 0,
        skipped_reasons: Sequence[str] = (),
        parts: Sequence[SourceRows] = (),
    ) -> None:
        self.table = table
        self.fingerprint = fingerprint
        self.skipped = skipped
        self.skipped_reasons = list(skipped_reasons)
        self.parts = list(parts) or [SourceRows("", 0, len(self))]
        self._file: IndexFile | None = None

    @classmethod
    def _of(cls, table: pa.Table, summary: dict[str, Any]) -> PairIndex:
        parts = [SourceRows(**part) for part in summary["parts"]]
        return cls(table, summary["fingerprint"], summary["skipped"], summary["skipped_reasons"], parts)

    @classmethod
    def _open(cls, file: IndexFile) -> PairIndex:
        index = cls._of(file.table, file.summary)
        index._file = file  # a temporary file stays as long as the index
        return index

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> Pair:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return Pair(*(column[row].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[Pair]:
        for batch in self.table.to_batches(_READ_ROWS):
            yield from map(Pair, *(column.to_pylist() for column in batch.columns))

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that gets a large index maps the same file, rather than a copy of all rows."""
        if self._file is not None:
            return _reopen, (self._file.path, self.fingerprint)
        return PairIndex, (self.table, self.fingerprint, self.skipped, self.skipped_reasons, self.parts)


def read_pairs(
    sources: Sequence[str],
    images: str | None = None,
    columns: Columns = USUAL,
    *,
    progress: Callable[[int], object] = lambda rows: None,
    cache: bool = True,
) -> PairIndex:
    """Read sources of image-text pairs into one index, in the order given.

    A row without image or caption is left out and counted. Whether image files exist is not checked here. More rows
    than fit one batch go to a file that is mapped into memory, and found again as long as no source has changed.

    Args:
        sources: see the module for formats, and `tcl.data.sources.find` for what may stand around a name.
        images: folder or URL that relative image paths start from; by default the place of the file that names them.
        columns: of images and captions, where they have other names than the usual.
        progress: told how many rows were read since the last call; not called for an index that is found again.
        cache: look for the index of an earlier call, and keep a large one for later.

    Returns:
        the index, with what was skipped.

    Raises:
        UsageError: a source does not exist, its format is unknown, or it lacks a column that is named.
        DataError: a source is malformed or cannot be read, or holds no usable pair.
    """
    if not sources:
        raise UsageError("no data was named", hint="name a source, for example --data captions.jsonl or --data scenes:")
    images = images and images.removeprefix("file://")
    if images is not None and not is_url(images) and not os.path.isdir(images):
        raise UsageError(f"no such folder of images: {images}")
    if images is not None and is_url(images):
        allow(images)
    found = [find_source(source) for source in sources]
    key = _key(found, images, columns) if cache else None
    if key and (file := open_cached(key)):
        return PairIndex._open(file)
    reading = _Reading(found, images, columns, progress)
    batches = reading.batches()
    first = list(islice(batches, 2))
    if len(first) < 2:  # small: read again rather than kept
        return PairIndex._of(pa.Table.from_batches(first, _SCHEMA), reading.summary())
    with locked(f"index-{key[:2]}") if key else nullcontext():
        if key and (file := open_cached(key)):  # another process was faster
            return PairIndex._open(file)
        return PairIndex._open(write_index(key, _SCHEMA, chain(first, batches), reading.summary))


class _Reading:
    """Reads sources once, batch by batch, and remembers what it saw."""

    def __init__(
        self, sources: Sequence[Source], images: str | None, columns: Columns, progress: Callable[[int], object]
    ) -> None:
        self._sources = sources
        self._images = images
        self._columns = columns
        self._progress = progress
        self._digest = hashlib.sha256()
        self._rows = 0
        self._skipped = 0
        self._reasons: list[str] = []
        self._parts: list[SourceRows] = []

    def batches(self) -> Iterator[pa.RecordBatch]:
        chunk: list[Pair] = []
        characters = 0
        for source in self._sources:
            for pair in self._pairs(source):
                chunk.append(pair)
                characters += sum(map(len, pair.captions))
                if len(chunk) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
                    yield self._batch(chunk)
                    chunk, characters = [], 0
        if chunk:
            yield self._batch(chunk)

    def summary(self) -> dict[str, Any]:
        """What is known when all batches were taken."""
        return {
            "rows": self._rows,
            "fingerprint": self._digest.hexdigest(),
            "skipped": self._skipped,
            "skipped_reasons": self._reasons,
            "parts": [asdict(part) for part in self._parts],
        }

    def _pairs(self, source: Source) -> Iterator[Pair]:
        start, skipped, first_reason, unreported = self._rows, 0, "", 0
        for row in pairs_of(source, self._columns, self._images):
            unreported += 1
            if unreported == _PROGRESS_ROWS:
                self._progress(unreported)
                unreported = 0
            if isinstance(row, Skipped):
                skipped += 1
                reason = readable(without_secrets(f"{row.place}: {row.reason}"))
                first_reason = first_reason or reason
                if len(self._reasons) < _REASONS_KEPT:
                    self._reasons.append(reason)
            else:
                self._rows += 1
                yield row
        self._progress(unreported)
        self._skipped += skipped
        if self._rows == start:
            raise _nothing_usable(source.text, skipped, first_reason)
        self._parts.append(SourceRows(source.text, start, self._rows, source.weight))

    def _batch(self, pairs: list[Pair]) -> pa.RecordBatch:
        for pair in pairs:
            # Not where the images are: data that was moved is the same data.
            self._digest.update(json.dumps([pair.image_id, pair.captions]).encode())
        columns = [
            pa.array(values, field.type) for values, field in zip(zip(*pairs, strict=True), _SCHEMA, strict=True)
        ]
        return pa.record_batch(columns, schema=_SCHEMA)


def _nothing_usable(source: str, skipped: int, first_reason: str) -> DataError:
    if skipped:
        return DataError(
            f"{source}: none of its {skipped} rows has an image and a caption",
            hint=f"the first one is {first_reason}",
        )
    return DataError(f"{source} holds no rows", hint="name a source with at least one image and caption")


def _key(sources: Sequence[Source], images: str | None, columns: Columns) -> str:
    """Changes with every file of the sources, and with whatever else decides the rows."""
    digest = hashlib.sha256()
    digest.update(json.dumps([_VERSION, MAX_CAPTION, images and os.path.abspath(images), asdict(columns)]).encode())
    for source in sources:
        digest.update(json.dumps([source.text, source.weight, source.condition]).encode())
        for file in source.files:
            digest.update(json.dumps([file.name, file.location, file.stamp]).encode())
    return digest.hexdigest()


def _reopen(path: Path, fingerprint: str) -> PairIndex:
    try:
        index = PairIndex._open(IndexFile.open(path))
    except (OSError, ValueError) as error:
        raise DataError(f"the index of the data is gone: {error}", hint="start the command again") from error
    if index.fingerprint != fingerprint:
        raise DataError(f"the index of the data changed: {path}", hint="start the command again")
    return index
