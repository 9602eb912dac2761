"""The queries of `tcl search`, one or many: texts, images and vectors.

They are read, encoded, searched for and re-ranked, with the time that each stage took.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tcl.errors import DataError, UsageError
from tcl_cli._console import counted, format_value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tcl.data.processor import Processor
    from tcl.data.tokenizer import UnknownWords
    from tcl.encoders.base import Encoder
    from tcl.search.exact import Collection, Hit
    from tcl.search.rerank import Reranker

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
    from tcl.files.named import allow
    from tcl.files.remote import is_url

    if text.endswith(".npy") and os.path.isfile(text):
        count = len(_open_vectors(Path(text)))
        if count != 1:
            raise UsageError(f"{text}: holds {count} vectors", hint=f"search for all of them: --queries {text}")
        return next(_vectors(Path(text)))
    if is_url(text):
        allow(text)
    return _text_or_image(text.removeprefix("file://"))


def read_queries(path: Path) -> Iterator[Query]:
    """Queries of a file: one per line of a `.txt`, one per object of a `.jsonl`, one per row of a `.npy`.

    Raises:
        UsageError: no such file, another suffix, or a query that `parse_query` refuses.
        DataError: malformed, or empty.
    """
    from tcl.data.storage.open import check_regular

    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: queries are read from {', '.join(SUFFIXES)}", hint="see `tcl search --help`")
    check_regular(str(path))
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="check --queries")
    read = {".txt": _lines, ".jsonl": _objects, ".npy": _vectors}[path.suffix]
    empty = True
    for query in read(path):
        empty = False
        yield query
    if empty:
        raise DataError(f"{path}: holds no query", hint="write one per line")


def encode_queries(
    queries: list[Query], encoder: Encoder | None, collection: Collection, unknown: UnknownWords
) -> NDArray[np.float32]:
    """Their vectors [Q, E].

    Args:
        queries: texts, images and vectors.
        encoder: needed for texts and images.
        collection: what will be searched.
        unknown: counts texts with words that the vocabulary does not know.

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
                ids, mask = encoder.processor.texts(names)
                for name, own, length in zip(names, ids, mask.sum(axis=1), strict=True):
                    unknown.add(name, own[:length], encoder.processor.tokenizer.unk_id)
                vectors[rows] = encoder.encode_text(ids, mask)
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

    from tcl.vectors.files import read_meta, sidecar

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


def _counter() -> UnknownWords:
    from tcl.data.tokenizer import UnknownWords

    return UnknownWords()


AT_ONCE = 64  # queries that are encoded and searched together


@dataclass
class SearchRun:
    """Encodes, searches and re-ranks; the model is opened when the first query needs it.

    Attributes:
        collection: what is searched.
        top: hits per query.
        rerank: how many of the nearest the fusion encoder orders.
        images: where the embedded images are now.
        open_encoder: opens the model.
        seconds: per stage.
        count: queries so far.
        allow_unknown: go on with a query of words that the vocabulary does not know.
        unread: hits that could not be read for re-ranking, by id.
    """

    collection: Collection
    top: int
    rerank: int | None
    images: Path | None
    open_encoder: Callable[[], Encoder]
    allow_unknown: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    count: int = 0
    unread: dict[str, Hit] = field(default_factory=dict)
    _unknown: UnknownWords = field(default_factory=_counter)
    _reranked: bool = False
    _encoder: Encoder | None = None
    _reranker: Reranker | None = None

    def __call__(self, queries: Iterable[Query]) -> Iterator[tuple[Query, list[Hit]]]:
        """Each query with its hits, best first.

        Raises:
            DataError: not one hit could be read for re-ranking.
        """
        rest = iter(queries)
        while chunk := list(islice(rest, AT_ONCE)):
            self._prepare(chunk)
            with self._clock("encode"):
                vectors = encode_queries(chunk, self._encoder, self.collection, self._unknown)
            if self._unknown.alone and not self.allow_unknown:
                raise UsageError(
                    f"the model's vocabulary knows no word of the query {self._unknown.example!r}",
                    hint="use other words, or add --allow-unknown: all such queries find the same",
                )
            with self._clock("search"):
                hits = self.collection.search(vectors, max(self.top, self.rerank or 0))
            for query, own in zip(chunk, hits, strict=True):
                self.count += 1
                if self.rerank is not None:
                    with self._clock("rerank"):
                        own = self._rerank(query, own)
                yield query, own[: self.top]
        if self.unread and not self._reranked and self._reranker is not None:
            self._reranker.check(next(iter(self.unread.values())))

    def warnings(self) -> Iterator[str]:
        """That words of queries are unknown, and that hits could not be read for re-ranking."""
        if warning := self._unknown.warning():
            yield warning
        if self.unread:
            first = next(iter(self.unread.values())).unread
            yield f"{counted(len(self.unread), 'hits')} not re-ranked, and behind those that are: {first}"

    def summary(self) -> str:
        """What was done, in one line."""
        parts = []
        if self._encoder is not None:
            where = f"{self._encoder.backend} ({self._encoder.precision})"
            parts.append(f"encoded on {where} in {_time(self.seconds['encode'])}")
        parts.append(f"{counted(len(self.collection), 'vectors')} searched in {_time(self.seconds['search'])}")
        if "rerank" in self.seconds:
            parts.append(f"re-ranked in {_time(self.seconds['rerank'])}")
        return (f"{self.count} queries: " if self.count > 1 else "") + ", ".join(parts)

    def _prepare(self, queries: Sequence[Query]) -> None:
        """Open the model, where these queries need one and it is not open yet."""
        from tcl.search.rerank import Reranker, check_kinds

        if self.rerank is not None:
            for query in queries:
                if query.kind == "vector":
                    raise UsageError("re-ranking looks at texts and images, not at vectors", hint="leave out --rerank")
                check_kinds(query.kind, self.collection)
        if self._encoder is None and any(query.kind != "vector" for query in queries):
            self._encoder = self.open_encoder()
            self.collection.check_model(self._encoder.model_hash)
        if self.rerank is not None and self._reranker is None and self._encoder is not None:
            from tcl.encoders.base import reading_processor
            from tcl.encoders.open import matcher_of

            matcher = matcher_of(self._encoder)
            self._reranker = Reranker(matcher, reading_processor(self._encoder), self.collection, self.images)

    def _rerank(self, query: Query, hits: list[Hit]) -> list[Hit]:
        assert self._reranker is not None
        first, rest = hits[: self.rerank], hits[self.rerank :]
        if query.kind == "text":
            ordered = self._reranker.by_text(query.name, first)
            self.unread |= {hit.id: hit for hit in ordered if hit.unread is not None}
            self._reranked |= any(hit.match is not None for hit in ordered)
            return [*ordered, *rest]
        return [*self._reranker.by_image(self._reranker.processor.image(query.name), first), *rest]

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def _time(seconds: float) -> str:
    return f"{format_value(seconds)} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
