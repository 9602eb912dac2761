"""Hits of a search matched with their query by the fusion encoder, from kept tokens or from the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.data.images.decode import ImageError
from tcl.data.inputs.listing import locate
from tcl.data.processor import Processor
from tcl.encoders.base import Matcher
from tcl.errors import DataError, UsageError
from tcl.search.exact import Collection, Hit, rerank

MOVED = "re-ranking opens the images again; say where they are now by --images, or embed with --keep-tokens"
CHUNK = 16  # pairs that pass through the fusion encoder at once
WORKERS = 4  # threads that decode


class Reranker:
    """Orders the hits of a collection by the fusion encoder.

    Args:
        matcher: of the model that made the vectors.
        processor: of the same model.
        collection: where the hits come from.
        root: where the embedded images are now; None for where they were embedded from.
    """

    def __init__(self, matcher: Matcher, processor: Processor, collection: Collection, root: Path | None) -> None:
        self.matcher, self.processor, self.collection = matcher, processor, collection
        self.root = collection.root if root is None else root

    def by_text(self, text: str, hits: Sequence[Hit]) -> list[Hit]:
        """Hits that are images, ordered by how well they match a text; behind these, hits that cannot be read."""
        ids, mask = self.processor.texts([text])
        readable: list[Hit] = []
        unread: list[Hit] = []
        logits = []
        for start in range(0, len(hits), CHUNK):
            found, tokens = self._read(hits[start : start + CHUNK])
            readable += [hit for hit in found if hit.unread is None]
            unread += [hit for hit in found if hit.unread is not None]
            rows = np.zeros(len(tokens), np.int64)
            if len(rows):
                logits.append(self.matcher.match(ids[rows], mask[rows], tokens))
        return [*_ordered(readable, logits), *unread]

    def by_image(self, pixels: NDArray[np.uint8], hits: Sequence[Hit]) -> list[Hit]:
        """Hits that are texts, ordered by how well they match an image [3, H, W]."""
        tokens = self.matcher.image_tokens(pixels[None])[1]
        logits = []
        for start in range(0, len(hits), CHUNK):
            ids, mask = self.processor.texts([hit.text or "" for hit in hits[start : start + CHUNK]])
            logits.append(self.matcher.match(ids, mask, tokens))
        return _ordered(hits, logits)

    def _read(self, hits: Sequence[Hit]) -> tuple[list[Hit], NDArray[Any]]:
        """The hits, some with the reason why they are unread, and the tokens [n, T, W] of the others."""
        try:
            tokens: NDArray[Any] | None = self.collection.tokens(hits)
            if tokens is not None:
                return list(hits), tokens
            read: Callable[[Hit], NDArray[Any]] = self._pixels
        except DataError:  # of one of them
            read = self._kept
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(partial(_attempt, read), hits))
        values = np.array([value for _, value in found if value is not None])
        if len(values) and read == self._pixels:
            values = self.matcher.image_tokens(values)[1]
        return [hit for hit, _ in found], values

    def check(self, hit: Hit) -> None:
        """Say why a hit is unread.

        Raises:
            DataError: that, with what to do.
        """
        try:
            if self.collection.tokens([hit]) is None:
                self._pixels(hit)
        except ImageError as error:
            raise DataError(error.message, MOVED) from error

    def _kept(self, hit: Hit) -> NDArray[np.float16]:
        tokens = self.collection.tokens([hit])
        assert tokens is not None
        return tokens[0]

    def _pixels(self, hit: Hit) -> NDArray[np.uint8]:
        return self.processor.image(locate(hit.path or hit.id, self.root))


def _attempt(read: Callable[[Hit], NDArray[Any]], hit: Hit) -> tuple[Hit, NDArray[Any] | None]:
    try:
        return hit, read(hit)
    except DataError as error:
        return replace(hit, unread=error.message), None


def check_kinds(query: str, collection: Collection) -> None:
    """Re-ranking compares texts with images.

    Raises:
        UsageError: query and vectors are of one kind.
    """
    if query == collection.kind:
        raise UsageError(
            f"re-ranking compares texts with images; query and vectors are both {query}s", hint="leave out --rerank"
        )


def _ordered(hits: Sequence[Hit], logits: Sequence[NDArray[np.float32]]) -> list[Hit]:
    return rerank(hits, np.concatenate(logits)) if logits else []
