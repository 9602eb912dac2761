"""Inputs of any size, brought to the shapes that an engine takes: texts are padded or cut, batches split and padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.encoders.tensorrt.profiles import Axes, Chunk, Range, is_length, split
from tcl.errors import UsageError

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
