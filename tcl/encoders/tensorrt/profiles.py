"""Which shapes an engine takes, and how inputs of any other size are brought to them.

Texts are padded or cut, batches split and padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcl.errors import UsageError

Axes = tuple[str | int, ...]
"""Of an input: a string is a dynamic axis, a number a fixed one."""


class Range(NamedTuple):
    """Sizes of a dynamic axis: an engine takes `smallest` to `largest`, and is tuned for `usual`."""

    smallest: int
    usual: int
    largest: int


DEFAULTS = {
    "image": Range(1, 64, 256),
    "text": Range(1, 64, 256),
    "pair": Range(1, 16, 32),
    "answers": Range(1, 64, 128),
    "answer-length": Range(2, 8, 16),
}
"""Batches of images, of texts and of both together, then what the graph of visual question answering reads."""

LENGTH = "length"  # of texts; its default is that of the model
_LEAST = {"answer-length": 2}  # a token to read and one to foretell
_MOST = 1 << 20
_KINDS = {"sequence": LENGTH, "answers": "answers", "answer_sequence": "answer-length"}
_LENGTHS = ("sequence", "answer_sequence")


@dataclass(frozen=True)
class Profiles:
    """The range of every kind of axis.

    Attributes:
        ranges: by kind: those of `DEFAULTS`, and `length`.
    """

    ranges: Mapping[str, Range]

    @classmethod
    def parse(cls, given: Iterable[str], max_length: int) -> Profiles:
        """From `KIND=SMALLEST,USUAL,LARGEST`; kinds that are not named keep their default.

        Args:
            given: as on the command line.
            max_length: at which the model's texts are cut.

        Raises:
            UsageError: one is nonsense.
        """
        known = DEFAULTS | {LENGTH: Range(1, max_length, max_length)}
        found: dict[str, Range] = {}
        for text in given:
            kind, _, numbers = text.partition("=")
            if kind not in known:
                raise UsageError(f"--profile {text}: no such kind of axis", hint=f"one of {', '.join(known)}")
            if kind in found:
                raise UsageError(f"--profile {text}: {kind} is given twice", hint="leave one of them out")
            found[kind] = _range(text, kind, numbers)
        return cls(known | found)

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[int]]) -> Profiles:
        """From what `to_json` gave."""
        return cls({kind: Range(*map(int, numbers)) for kind, numbers in values.items()})

    def to_json(self) -> dict[str, list[int]]:
        """The same as plain values."""
        return {kind: list(numbers) for kind, numbers in self.ranges.items()}

    def of(self, inputs: Mapping[str, Axes]) -> dict[str, tuple[Range, ...]]:
        """The range of every axis of the inputs of a graph."""
        batch = _batch_kind(inputs)

        def range_of(axis: str | int) -> Range:
            if isinstance(axis, int):
                return Range(axis, axis, axis)
            found = self.ranges[_KINDS.get(axis, batch)]
            return found._replace(smallest=1) if axis == "images" else found  # one stands for all texts

        return {name: tuple(map(range_of, axes)) for name, axes in inputs.items()}


def _range(text: str, kind: str, numbers: str) -> Range:
    try:
        smallest, usual, largest = (int(number) for number in numbers.split(","))
    except ValueError:
        raise UsageError(
            f"--profile {text}: not three whole numbers", hint=f"SMALLEST,USUAL,LARGEST, as in --profile {kind}=1,8,32"
        ) from None
    least = _LEAST.get(kind, 1)
    if not least <= smallest <= usual <= largest:
        raise UsageError(
            f"--profile {text}: must be {least} or more and must not fall",
            hint=f"SMALLEST,USUAL,LARGEST, as in --profile {kind}={least},8,32",
        )
    if largest > _MOST:
        raise UsageError(f"--profile {text}: must be at most {_MOST}", hint=f"as in --profile {kind}=1,8,32")
    return Range(smallest, usual, largest)


def _batch_kind(inputs: Iterable[str]) -> str:
    texts = [name for name in inputs if name == "input_ids"]
    images = [name for name in inputs if name.startswith(("pixel_", "image_"))]
    return "pair" if texts and images else "text" if texts else "image"


class Chunk(NamedTuple):
    """Rows `start` to `stop` of a batch, as `rows` rows of the engine; what is more is padding."""

    start: int
    stop: int
    rows: int


def split(count: int, allowed: Range) -> list[Chunk]:
    """A batch of `count` in as few chunks as an engine takes it in, of nearly equal sizes."""
    number = -(-count // allowed.largest)
    edges = [count * place // number for place in range(number + 1)] if number else [0]
    return [Chunk(start, stop, max(stop - start, allowed.smallest)) for start, stop in pairwise(edges)]


def is_length(axis: str | int) -> bool:
    """Whether an axis counts tokens, which can be padded and masked."""
    return axis in _LENGTHS


Arrays = Mapping[str, NDArray[Any]]
Ranges = Mapping[str, Sequence[Range]]
"""Of every axis of every input."""


def fitted(feed: Arrays, axes: Mapping[str, Axes], ranges: Ranges) -> Iterator[tuple[Chunk, dict[str, NDArray[Any]]]]:
    """The inputs in chunks that the engine takes; the rows of a chunk beyond `stop - start` are padding.

    Args:
        feed: inputs of any batch size; one image may stand for all texts.
        axes: of the inputs.
        ranges: that the engine takes.

    Raises:
        UsageError: texts are longer than the engine takes.
    """
    feed = {name: fit_lengths(name, array, axes, ranges, feed) for name, array in feed.items()}
    batched = [name for name in feed if axes[name][0] == "batch"]
    count, allowed = len(feed[batched[0]]), ranges[batched[0]][0]
    batched += [name for name in feed if axes[name][0] == "images" and len(feed[name]) == count > 1]
    for chunk in split(count, allowed) or [Chunk(0, 0, allowed.smallest)]:
        yield chunk, {name: _rows(feed[name], chunk) if name in batched else feed[name] for name in feed}


def fit_lengths(
    name: str,
    array: NDArray[Any],
    axes: Mapping[str, Sequence[str | int]],
    ranges: Ranges,
    feed: Arrays,
) -> NDArray[Any]:
    """An input with texts as long as the engine takes them; what is added or left out is masked.

    Args:
        name: of the input.
        array: of it.
        axes: of the inputs.
        ranges: of these.
        feed: all inputs.

    Raises:
        UsageError: a text is longer.
    """
    for axis, kind in enumerate(axes[name]):
        if not is_length(kind):
            continue
        allowed, length = ranges[name][axis], array.shape[axis]
        if length > allowed.largest:
            mask = next(feed[other] for other in feed if other.endswith("_mask") and axes[other][axis] == kind)
            if mask[:, allowed.largest :].any():
                raise UsageError(
                    f"a text of {length} tokens is longer than the engine takes, {allowed.largest}",
                    hint=f"build it with --profile length=1,{allowed.usual},{length}",
                )
            array = array[:, : allowed.largest]
        elif length < allowed.smallest:
            array = np.pad(array, [(0, 0), (0, allowed.smallest - length)])
    return array


def _rows(array: NDArray[Any], chunk: Chunk) -> NDArray[Any]:
    """The rows of a chunk, padded with copies of the last."""
    rows = array[chunk.start : chunk.stop]
    missing = chunk.rows - len(rows)
    if not missing:
        return rows
    last = rows[-1:] if len(rows) else np.zeros((1, *array.shape[1:]), array.dtype)
    return np.concatenate([rows, np.repeat(last, missing, axis=0)])
