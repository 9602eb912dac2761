"""One or many queries encoded, searched for and re-ranked, with the time that each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tcl.errors import UsageError
from tcl_cli._console import counted, format_value
from tcl_cli._queries import Query, encode_queries

if TYPE_CHECKING:
    from tcl.encoders.base import Encoder
    from tcl.search.exact import Collection, Hit
    from tcl.search.rerank import Reranker

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
    """

    collection: Collection
    top: int
    rerank: int | None
    images: Path | None
    open_encoder: Callable[[], Encoder]
    seconds: dict[str, float] = field(default_factory=dict)
    count: int = 0
    _encoder: Encoder | None = None
    _reranker: Reranker | None = None

    def __call__(self, queries: Iterable[Query]) -> Iterator[tuple[Query, list[Hit]]]:
        """Each query with its hits, best first."""
        rest = iter(queries)
        while chunk := list(islice(rest, AT_ONCE)):
            self._prepare(chunk)
            with self._clock("encode"):
                vectors = encode_queries(chunk, self._encoder, self.collection)
            with self._clock("search"):
                hits = self.collection.search(vectors, max(self.top, self.rerank or 0))
            for query, own in zip(chunk, hits, strict=True):
                self.count += 1
                if self.rerank is not None:
                    with self._clock("rerank"):
                        own = self._rerank(query, own)
                yield query, own[: self.top]

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
            from export.matcher import matcher_of
            from tcl.encoders.base import reading_processor

            matcher = matcher_of(self._encoder)
            self._reranker = Reranker(matcher, reading_processor(self._encoder), self.collection, self.images)

    def _rerank(self, query: Query, hits: list[Hit]) -> list[Hit]:
        assert self._reranker is not None
        first, rest = hits[: self.rerank], hits[self.rerank :]
        if query.kind == "text":
            return [*self._reranker.by_text(query.name, first), *rest]
        return [*self._reranker.by_image(self._reranker.processor.image(query.name), first), *rest]

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def _time(seconds: float) -> str:
    return f"{format_value(seconds)} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
