"""Hits of a search matched with their query by the fusion encoder, from kept tokens or from the images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
        """Hits that are images, ordered by how well they match a text.

        Raises:
            DataError: an image cannot be read.
        """
        ids, mask = self.processor.texts([text])
        logits = []
        for start in range(0, len(hits), CHUNK):
            chunk = hits[start : start + CHUNK]
            tokens: NDArray[Any] | None = self.collection.tokens(chunk)
            if tokens is None:
                tokens = self.matcher.image_tokens(self._pixels(chunk))[1]
            rows = np.zeros(len(chunk), np.int64)
            logits.append(self.matcher.match(ids[rows], mask[rows], tokens))
        return _ordered(hits, logits)

    def by_image(self, pixels: NDArray[np.uint8], hits: Sequence[Hit]) -> list[Hit]:
        """Hits that are texts, ordered by how well they match an image [3, H, W]."""
        tokens = self.matcher.image_tokens(pixels[None])[1]
        logits = []
        for start in range(0, len(hits), CHUNK):
            ids, mask = self.processor.texts([hit.text or "" for hit in hits[start : start + CHUNK]])
            logits.append(self.matcher.match(ids, mask, tokens))
        return _ordered(hits, logits)

    def _pixels(self, hits: Sequence[Hit]) -> NDArray[np.uint8]:
        places = [locate(hit.path or hit.id, self.root) for hit in hits]
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                return np.stack(list(pool.map(self.processor.image, places)))
        except ImageError as error:
            hint = "re-ranking opens the images again; say where they are now by --images, or embed with --keep-tokens"
            raise DataError(error.message, hint) from error


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
