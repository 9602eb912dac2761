"""What graphs are compared on: inputs far from any that were used to make them, and what a reference makes of these.

What stands in the padding is random, so a graph that ignores its mask is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tcl.data.processor import Processor
from tcl.encoders.graphs import Graph

BATCHES = (1, 2, 7)
LARGE_BATCH = 64
SMALL_MODEL = 20_000_000  # weights; up to here every length is compared, and the large batch
REAL = 16  # images or texts in a batch of real ones
CALIBRATION_ROWS = 32  # random ones
ANSWERS = 16  # of a list, compared at once

Feed = dict[str, NDArray[Any]]
Tokens = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids and mask, [B, S] each."""


class Case(NamedTuple):
    """One set of inputs and what the reference makes of it."""

    name: str  # "batch 2, length 5, padded"
    feed: Feed
    expected: Feed  # by output


class Reference(Protocol):
    """Computes in float32 what a graph should give.

    Attributes:
        name: what it is, for the record.
        processor: preprocessing of the model.
        small: is computing so cheap that everything is compared?
    """

    name: str
    processor: Processor
    small: bool

    def case(
        self,
        graph: Graph,
        name: str,
        pixels: NDArray[np.uint8] | None,
        tokens: Tokens | None,
        draw: np.random.Generator,
    ) -> Case:
        """The inputs that a graph takes of pixels [B, 3, H, W] and tokens, and what comes of them."""
        ...


class Samples:
    """Real images and texts, decoded and tokenised once.

    Args:
        processor: of the model.
        images: paths or references.
        texts: captions.
    """

    def __init__(self, processor: Processor, images: Sequence[str | Path] = (), texts: Sequence[str] = ()) -> None:
        self.pixels = processor.images(images) if images else None
        self.tokens = processor.texts(texts) if texts else None


def cases(reference: Reference, graph: Graph, samples: Samples) -> Iterator[Case]:
    """The cases of a graph: batches of 1, 2, 7 and 64, every length, with and without padding, and the real samples.

    Of a large model the batch of 64 and most lengths are left out.
    """
    draw = np.random.default_rng(0)
    processor, small = reference.processor, reference.small
    inputs = {port.name for port in graph.inputs}
    if "input_ids" not in inputs:
        for batch in (*BATCHES, LARGE_BATCH) if small else BATCHES:
            yield reference.case(graph, f"batch {batch}, random pixels", _pixels(processor, draw, batch), None, draw)
    else:
        for batch, length, padded in _lengths(processor.max_length, small, alone=len(inputs) == 2):
            pixels = _pixels(processor, draw, 1 if graph.name == "matcher" and (length + batch) % 2 else batch)
            tokens = _tokens(processor, draw, batch, length, padded)
            name = f"batch {batch}, length {length}" + (", padded" if padded else "")
            if graph.name == "matcher":
                name += f", {len(pixels)} image" + ("s" if len(pixels) > 1 else "")
            yield reference.case(graph, name, pixels if len(inputs) > 2 else None, tokens, draw)
    yield from _real(reference, graph, samples, draw)


def calibration(reference: Reference, samples: Samples, static: bool = True) -> Callable[[Graph, str], Sequence[Feed]]:
    """What gives the inputs on which a graph in a precision finds its ranges, the same for int8 and fp8.

    Args:
        reference: makes those of graphs that read what others give.
        samples: real ones.
        static: without it there are none for int8, which then finds its ranges for every batch.
    """

    @lru_cache(maxsize=1)  # the precisions of a graph are written one after the other
    def inputs(graph: Graph) -> list[Feed]:
        return _typical(reference, graph, samples)

    def of(graph: Graph, precision: str) -> Sequence[Feed]:
        if precision == "int8" and not static:
            return ()
        return [in_precision(graph, feed, precision) for feed in inputs(graph)]

    return of


def _typical(reference: Reference, graph: Graph, samples: Samples) -> list[Feed]:
    """Typical inputs of a graph, from real samples; none where they lack what it reads.

    Some random ones are among them, so that a range holds for inputs that are unlike the few real ones.
    """
    draw = np.random.default_rng(1)
    real = [case.feed for case in _real(reference, graph, samples, draw)]
    if not real:
        return []
    reads_text = "input_ids" in real[0]
    rows, processor = CALIBRATION_ROWS, reference.processor
    pixels = None if graph.name == "text_encoder" else _pixels(processor, draw, rows)
    tokens = _tokens(processor, draw, rows, processor.max_length, padded=True) if reads_text else None
    return [*real, reference.case(graph, "random", pixels, tokens, draw).feed]


def in_precision(graph: Graph, feed: Feed, precision: str) -> Feed:
    """Inputs with the element types that the graph takes in a precision."""
    types = {port.name: graph.dtype(port, precision) for port in graph.inputs}
    return {name: array.astype(types[name], copy=False) for name, array in feed.items()}


def _real(reference: Reference, graph: Graph, samples: Samples, draw: np.random.Generator) -> Iterator[Case]:
    inputs = {port.name for port in graph.inputs}
    reads_text = "input_ids" in inputs
    reads_images = len(inputs) != 2
    if (reads_text and samples.tokens is None) or (reads_images and samples.pixels is None):
        return
    images = [] if samples.pixels is None else list(samples.pixels)
    count = len(samples.tokens[0]) if reads_text and samples.tokens else len(images)
    for start in range(0, count, REAL):
        rows = range(start, min(start + REAL, count))
        pixels = np.stack([images[row % len(images)] for row in rows]) if reads_images else None
        tokens = None
        if reads_text and samples.tokens:
            ids, mask = (part[start : start + REAL] for part in samples.tokens)
            length = int(mask.sum(axis=1).max())
            tokens = ids[:, :length], mask[:, :length]
        yield reference.case(graph, f"real inputs {start + 1} to {rows[-1] + 1}", pixels, tokens, draw)


def _lengths(longest: int, small: bool, alone: bool) -> Iterator[tuple[int, int, bool]]:
    """(batch, length, padded); of graphs that read more than the text, a batch per length, in turn."""
    every = range(1, longest + 1)
    some = [length for length in every if length in (1, 2, 3, 7, longest // 2, longest)]
    for length in every if small else some:
        for batch in BATCHES if alone and small else (BATCHES[length % 3],):
            yield batch, length, False
            yield batch, length, True
    if small:
        yield LARGE_BATCH, longest, True


def _pixels(processor: Processor, draw: np.random.Generator, batch: int) -> NDArray[np.uint8]:
    return draw.integers(0, 256, (batch, 3, *processor.image_size), dtype=np.uint8)


def _tokens(processor: Processor, draw: np.random.Generator, batch: int, length: int, padded: bool) -> Tokens:
    ids = draw.integers(0, processor.tokenizer.vocab_size, (batch, length), dtype=np.int64)
    lengths = draw.integers(1, length + 1, batch) if padded else np.full(batch, length)
    return ids, (np.arange(length) < lengths[:, None]).astype(np.int64)
