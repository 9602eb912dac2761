"""From the rows of a source to pairs, or to inputs of `tcl embed`.

Which columns count, where the image is, what is left out.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.scenes import scenes
from tcl.data.sources.columns import Columns, InputRow, several, table_texts
from tcl.data.sources.find import DataFile, Source
from tcl.data.sources.shards import Skipped, read_tar, shard_rows
from tcl.data.storage.parquet_cells import cell_reference
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
from tcl.errors import DataError, UsageError, reason_of
from tcl.files.remote import is_url, url_path

MAX_CAPTION = 100_000
"""Characters that are kept of a caption; the published cleaning keeps 30 words of it."""

_WORD = re.compile(r"[A-Za-z0-9]")


class Pair(NamedTuple):
    """An image and its captions.

    Args:
        image: a reference that `tcl.data.storage.open.open_binary` opens, or `scenes:` renders: an absolute path, a
            URL, a member of a shard.
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


_PARQUET_ROWS = 2048  # per step


class Placed(NamedTuple):
    """A file of a source, and how images of it are named.

    Args:
        file: the file.
        container: itself, below the root of the inputs; or its URL.
        base: what relative paths in it start from, below the root; or a URL.
    """

    file: DataFile
    container: str
    base: str


def names_tables(source: str) -> bool:
    """Whether a source, perhaps with braces, wildcards, a condition, is called as tables or shards are."""
    name = re.sub(r"#[^#/]*=[^#]*$|@[0-9.]+$", "", source)
    return all(PurePosixPath(url_path(one)).suffix.lower() in (*READERS, ".tar") for one in _ends(name))


def _ends(name: str) -> list[str]:
    """Names as the braces at the end leave them: `x.{csv,tsv}` is called `.csv` and `.tsv`."""
    if not name.endswith("}") or "{" not in name:
        return [name]
    front, _, words = name[:-1].rpartition("{")
    return [front + word for word in words.split(",")]


def place(source: Source) -> tuple[list[Placed], Path]:
    """Files with their names below one root, and that root."""
    local = [os.path.dirname(file.location) for file in source.files if not is_url(file.name)]
    if len(source.files) == 1 and local:
        root = Path(source.files[0].name).parent
    else:
        root = Path(os.path.commonpath(local)) if local else Path()
    placed = []
    for file in source.files:
        if is_url(file.name):
            placed.append(Placed(file, file.name, url_path(file.name).rpartition("/")[0]))
        else:
            below = os.path.relpath(file.location, root.absolute())
            placed.append(Placed(file, below, os.path.dirname(below)))
    return placed, root


def resolve(image: str, base: str) -> str:
    """An image as a file in `base` names it: below the root, absolute, a URL or a reference."""
    image = image.removeprefix("file://")
    if not image or not base or image.startswith(scenes.PREFIX) or is_url(image):
        return image
    if is_url(base) and not image.startswith("/"):
        scheme, mark, path = base.partition("://")
        return scheme + mark + posixpath.normpath(posixpath.join(path, image))
    return os.path.join(base, image)


def kind_of(placed: Placed, columns: Columns) -> Literal["image", "text"]:
    """Whether a file holds images or texts, seen from its columns; shards hold images.

    Raises:
        UsageError: the user named a column of each kind.
        DataError: it is malformed, or has no rows.
    """
    name, path = placed.file.name, placed.file.local()
    if placed.file.suffix == ".tar":
        return "text" if columns.text else "image"
    if READERS[placed.file.suffix] is read_parquet:
        names: Sequence[str] = list(parquet_columns(path, name))
    else:
        first = next(READERS[placed.file.suffix](path, name), None)
        if first is None:
            raise DataError(f"{name}: holds no rows", hint="is it the right file?")
        names = list(_object(name, *first))
    return "image" if columns.kind_of(names, name) == "image" else "text"


def input_rows(placed: Placed, kind: str, columns: Columns, warnings: list[str]) -> Iterator[InputRow]:
    """Inputs of a file, in its order.

    Raises:
        UsageError: it has no such column.
        DataError: it is malformed or cannot be read.
    """
    file = placed.file
    try:
        path = file.local()
        if file.suffix == ".tar":
            yield from shard_rows(path, file.name, placed.container, kind, columns, warnings)
        elif READERS[file.suffix] is read_parquet:
            yield from _parquet_rows(path, placed, kind, columns)
        else:
            yield from _listed_rows(path, placed, kind, columns)
    except OSError as error:
        reason = error.strerror or str(error)
        text = reason if file.name in reason else f"cannot read {file.name}: {reason}"
        raise DataError(text, hint="check that it is there and may be read") from error


def _listed_rows(path: Path, placed: Placed, kind: str, columns: Columns) -> Iterator[InputRow]:
    name = placed.file.name
    for number, (where, row) in enumerate(READERS[placed.file.suffix](path, name), 1):
        row = _object(name, where, row)
        if number == 1:
            columns.check([key for key in row if key is not None], kind, f"{name} {where}")
        if columns.wants(row):
            values = table_texts(row, columns.keys(kind))
            yield from _inputs(row, values, number, f"{name} {where}", placed, kind, columns)


def _inputs(
    row: dict[str, Any], values: list[str], number: int, where: str, placed: Placed, kind: str, columns: Columns
) -> Iterator[InputRow]:
    """The inputs of one row; without a value one that will fail, so that it is listed."""
    given = columns.row_id(row)
    row_id = given or (values[0] if kind == "image" and len(values) == 1 else str(number))
    if kind == "image":
        values = [resolve(value, placed.base) for value in values]
    yield from several(row_id, values or [""], where, given is not None)


def _parquet_rows(path: Path, placed: Placed, kind: str, columns: Columns) -> Iterator[InputRow]:
    """Only the columns that count are read, and of images only where they stand."""
    name = placed.file.name
    found = parquet_columns(path, name)
    usable = {key: type for key, type in found.items() if kind == "image" or type != "bytes"}
    columns.check(list(usable), kind, name)
    keys = [key for key in columns.keys(kind) if key in usable]
    image = keys[0] if usable[keys[0]] == "bytes" else None  # a column of files, not of their paths
    wanted = [f"{image}.path"] if image else [key for key in keys if usable[key] != "bytes"]
    wanted += [columns.id or "id", *columns.condition[:1]] if columns.condition else [columns.id or "id"]
    for number, row in enumerate(_projected(path, name, wanted), 1):
        if not columns.wants(row):
            continue
        where = f"{name} row {number}"
        if image is None:
            yield from _inputs(row, table_texts(row, keys), number, where, placed, kind, columns)
            continue
        given = columns.row_id(row)
        row_id = given or (row.get(image) or {}).get("path") or str(number)
        yield InputRow(row_id, cell_reference(placed.container, image, number - 1), where, given is not None)


def _projected(path: Path, name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with only these columns or members of columns; those that are not there are passed over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            leaves = {file.schema.column(number).path for number in range(len(file.schema))}
            there = [
                column for column in columns if any(leaf == column or leaf.startswith(f"{column}.") for leaf in leaves)
            ]
            if not there:
                yield from ({} for _ in range(file.metadata.num_rows))
                return
            for batch in file.iter_batches(_PARQUET_ROWS, columns=there, use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{name}: malformed Parquet: {reason_of(error)}", hint="was it written to its end?") from error


def _object(name: str, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{name} {where}: expected an object, found {type(row).__name__}")
    return row


def all_rows(files: Sequence[Placed], kind: str, columns: Columns, warnings: list[str]) -> Iterator[InputRow]:
    """Inputs of all files."""
    return chain.from_iterable(input_rows(placed, kind, columns, warnings) for placed in files)


def check_columns_apply(source: str, kind: str, columns: Columns, shard: bool) -> None:
    """Refuse a named column that would change nothing.

    Raises:
        UsageError: it would not.
    """
    if shard and columns.image:
        raise UsageError(f"{source}: a shard has no image column", hint="leave out --image-column")
    other = columns.text if kind == "image" else columns.image if kind == "text" else None
    if other and not (columns.image and columns.text):
        wrong = "text" if kind == "image" else "image"
        raise UsageError(f"{source}: --{wrong}-column says nothing about {kind}s", hint=f"add --kind {wrong}")
