"""What `tcl search` is asked for: texts, images and vectors, one or many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tcl.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tcl.data.processor import Processor
    from tcl.encoders.base import Encoder
    from tcl.search.exact import Collection

SUFFIXES = (".txt", ".jsonl", ".npy")
KEYS = ("query", "text", "image")


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        name: the text, the path of the image, or which vector.
        kind: what it is.
        id: of the row it comes from, where that has one.
        vector: float32 [E], L2-normalised, where it is one.
        model_hash: of the model that made the vector, where that is known.
        place: file and line that it stands in, as errors begin with them; empty on the command line.
    """

    name: str
    kind: Literal["text", "image", "vector"]
    id: str | None = None
    vector: NDArray[np.float32] | None = None
    model_hash: str | None = None
    place: str = ""


def parse_query(text: str) -> Query:
    """The query that a word of the command line stands for.

    Raises:
        UsageError: it holds no words, or names an image or a file of vectors that is not there.
        DataError: it is a file of vectors that holds none, or several.
    """
    if text.endswith(".npy") and os.path.isfile(text):
        count = len(_open_vectors(Path(text)))
        if count != 1:
            raise UsageError(f"{text}: holds {count} vectors", hint=f"search for all of them: --queries {text}")
        return next(_vectors(Path(text)))
    return _text_or_image(text)


def read_queries(path: Path) -> Iterator[Query]:
    """Queries of a file: one per line of a `.txt`, one per object of a `.jsonl`, one per row of a `.npy`.

    Raises:
        UsageError: no such file, another suffix, or a query that `parse_query` refuses.
        DataError: malformed, or empty.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: queries are read from {', '.join(SUFFIXES)}", hint="see `tcl search --help`")
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="check --queries")
    read = {".txt": _lines, ".jsonl": _objects, ".npy": _vectors}[path.suffix]
    empty = True
    for query in read(path):
        empty = False
        yield query
    if empty:
        raise DataError(f"{path}: holds no query", hint="write one per line")


def encode_queries(queries: list[Query], encoder: Encoder | None, collection: Collection) -> NDArray[np.float32]:
    """Their vectors [Q, E].

    Raises:
        UsageError: a vector was made by another model than the collection's.
        DataError: an image cannot be read.
    """
    import numpy as np

    from tcl.encoders.base import reading_processor

    vectors = np.empty((len(queries), collection.dim), np.float32)
    for kind in ("text", "image"):
        rows = [row for row, query in enumerate(queries) if query.kind == kind]
        if rows and encoder is not None:
            if kind == "text":
                names = [queries[row].name for row in rows]
                vectors[rows] = encoder.encode_text(*encoder.processor.texts(names))
            else:
                # Read as the collection was, so that an image finds itself.
                processor = reading_processor(encoder)
                vectors[rows] = encoder.encode_image(np.stack([_pixels(queries[row], processor) for row in rows]))
    for row, query in enumerate(queries):
        if query.vector is not None:
            if query.model_hash is not None:
                collection.check_model(query.model_hash)
            if len(query.vector) != collection.dim:
                raise DataError(f"{query.name}: {len(query.vector)} entries, {collection.name} has {collection.dim}")
            vectors[row] = query.vector
    return vectors


def _pixels(query: Query, processor: Processor) -> NDArray[np.uint8]:
    from tcl.data.images.decode import ImageError

    try:
        return processor.image(query.name)
    except ImageError as error:
        raise DataError(f"{query.place}{error.message}", error.hint) from error


def _text_or_image(text: str, row_id: str | None = None, place: str = "") -> Query:
    from tcl.data.images.decode import IMAGE_SUFFIXES
    from tcl.data.scenes.scenes import PREFIX
    from tcl.files.remote import is_url

    if text.startswith(PREFIX) or is_url(text) or os.path.isfile(text):
        return Query(text, "image", row_id, place=place)
    if Path(text).suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{place}{text}: no such image", hint="a query is a text, or the path of an image that exists")
    if text.endswith(".npy"):
        raise UsageError(f"{place}{text}: no such file", hint="a query is a text, an image, or a .npy with one vector")
    return _text(text, row_id, place)


def _text(text: str, row_id: str | None, place: str) -> Query:
    """A text, whatever else it could be the name of."""
    from tcl.data.tokenizer import clean_caption

    if not clean_caption(text):
        raise UsageError(
            f"{place}the query {text!r} holds no words", hint="describe what to look for, or name an image"
        )
    return Query(text, "text", row_id)


def _lines(path: Path) -> Iterator[Query]:
    for number, line in _numbered(path):
        yield _text_or_image(line, place=f"{path} line {number}: ")


def _objects(path: Path) -> Iterator[Query]:
    for number, line in _numbered(path):
        place = f"{path} line {number}: "
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}malformed JSON: {error}", hint="one object per line") from error
        key = next((key for key in KEYS if isinstance(row, dict) and isinstance(row.get(key), str)), None)
        if key is None:
            raise DataError(f"{place}no query", hint=f"name it {', '.join(KEYS)}")
        row_id = None if row.get("id") is None else str(row["id"])
        if key == "query":
            yield _text_or_image(row[key], row_id, place)
        elif key == "text":
            yield _text(row[key], row_id, place)
        elif row[key].strip():
            yield Query(row[key], "image", row_id, place=place)
        else:
            raise DataError(f"{place}names no image", hint="give its path")


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    from tcl.data.tables.formats import numbered_lines

    return ((number, line.strip()) for number, line in numbered_lines(path) if line.strip())


def _vectors(path: Path) -> Iterator[Query]:
    import numpy as np

    from tcl.vectors.files import sidecar
    from tcl.vectors.reader import read_meta

    meta = sidecar(path, "meta.json")
    model_hash = read_meta(meta).get("model_hash") if meta.is_file() else None
    for row, values in enumerate(_open_vectors(path)):
        vector = np.array(values, np.float32)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise DataError(f"{path}: row {row} is not finite, or zero", hint="give another vector")
        yield Query(f"{path} row {row}", "vector", None, vector / np.float32(length), model_hash)


def _open_vectors(path: Path) -> NDArray[Any]:
    import numpy as np

    from tcl.vectors.parts import map_npy

    vectors = np.atleast_2d(map_npy(path))
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise DataError(f"{path}: holds {vectors.dtype} {vectors.shape}, not float vectors [N, E]")
    return vectors
