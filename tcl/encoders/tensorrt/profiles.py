"""Which shapes an engine takes, and how inputs of any other size are brought to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

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
