"""Millions of strings in Arrow memory: about their own size, where Python objects take a hundred bytes more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import overload

import numpy as np
import pyarrow as pa

_CHUNK_ROWS = 16384
_KIND = pa.large_binary()


class Strings(Sequence[str]):
    """A sequence of strings that cannot be changed.

    Args:
        column: their bytes, one Arrow `large_binary` each.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """From any strings, which are read as a stream; half a surrogate pair becomes a question mark."""
        if isinstance(texts, Strings):
            return texts
        rest = (text.encode("utf-8", "replace") for text in texts)
        chunks = iter(lambda: list(islice(rest, _CHUNK_ROWS)), [])
        return cls(pa.chunked_array([byte_strings(chunk) for chunk in chunks], _KIND))

    @classmethod
    def concatenated(cls, parts: Iterable[Strings]) -> Strings:
        """All strings of one after the other."""
        return cls(pa.chunked_array(list(chain.from_iterable(part.column.chunks for part in parts)), _KIND))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step == 1:
                return list(self.part(start, stop))
            return [self[number] for number in range(start, stop, step)]
        return str(self.column[row].as_py(), "utf-8")

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            for start in range(0, len(chunk), _CHUNK_ROWS):
                yield from map(bytes.decode, chunk.slice(start, _CHUNK_ROWS).to_pylist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"

    def part(self, start: int, stop: int) -> Strings:
        """Rows from `start` up to `stop`, without a copy."""
        return Strings(self.column.slice(start, max(stop - start, 0)))

    def repeated(self) -> set[str]:
        """The strings that are there more than once; found with eight bytes a row."""
        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        pairs = ((self[int(order[at])], self[int(order[at + 1])]) for at in equal)
        return {first for first, second in pairs if first == second}


def byte_strings(contents: Sequence[bytes]) -> pa.Array:
    """An Arrow array of byte strings, of exactly their size; Arrow's own conversion leaves holes as large."""
    offsets = np.zeros(len(contents) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, contents), np.int64, len(contents)), out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(contents))]
    return pa.Array.from_buffers(_KIND, len(contents), buffers)
