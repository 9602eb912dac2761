"""Images of pairs: which are missing, damaged, copies, too small or of an odd shape.

Every image is decoded: the header of a file says nothing about whether the rest of it is there.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tcl.data.check.figures import SHOWN, Listing, digest, most_common, percent, share, summary
from tcl.data.images.decode import MISSING, ImageError
from tcl.data.images.original import read_original
from tcl.errors import without_secrets
from tcl.machine.processes import ordered_map

if TYPE_CHECKING:
    from tcl.data.pairs.table import PairIndex

CHUNK_IMAGES = 16
SMALL_SIDE = 256  # pixels of the published model; a smaller image is enlarged
EXTREME_ASPECT = 3.0  # longer to shorter side; squashing such an image to a square disfigures it
REASONS_KEPT = 1000


@dataclass
class ImageCheck:
    """Figures of images.

    Attributes:
        distinct: images that the pairs name.
        checked: of these, how many were read: all, or a sample.
        missing: no such file.
        unreadable: there, but not to be decoded.
        copies: the content of the file is that of an image read before.
        small: the shorter side has less than `SMALL_SIDE` pixels.
        extreme: the longer side is more than `EXTREME_ASPECT` times the shorter one.
        bytes: of the readable files together.
        examples: the first that could not be read.
    """

    distinct: int = 0
    checked: int = 0
    missing: int = 0
    unreadable: int = 0
    copies: int = 0
    small: int = 0
    extreme: int = 0
    bytes: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Missing or unreadable."""
        return self.missing + self.unreadable

    @property
    def readable(self) -> int:
        """Of the checked ones."""
        return self.checked - self.bad

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "distinct": self.distinct,
            "checked": self.checked,
            "missing": share(self.missing, self.checked),
            "unreadable": share(self.unreadable, self.checked),
            "bad_percent": percent(self.bad, self.checked),
            "reasons": most_common(self.reasons),
            "examples": self.examples,
            "copies": share(self.copies, self.readable),
            f"smaller_than_{SMALL_SIDE}": share(self.small, self.readable),
            "extreme_aspect": share(self.extreme, self.readable),
            "width": summary(self.widths),
            "height": summary(self.heights),
            "formats": most_common(self.formats),
            "modes": most_common(self.modes),
            "bytes": self.bytes,
        }


class _Seen(NamedTuple):
    """One image; `reason` says why there is nothing else."""

    reason: str = ""
    content: bytes = b""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0


def check_images(
    index: PairIndex,
    rows: np.ndarray,
    sample: int | None = None,
    *,
    workers: int = 1,
    listing: Listing | None = None,
    progress: Callable[..., object] = lambda n, **info: None,
) -> ImageCheck:
    """Read and decode images; the figures do not depend on the number of workers.

    Args:
        index: the pairs.
        rows: the rows [I] whose images are read; see `CaptionCheck.first_rows`.
        sample: read only so many of them, the same ones each time.
        workers: processes.
        listing: called for each image that cannot be read and for each copy.
        progress: called with the number of images done since the last call, and `bad`, those not readable so far.
    """
    result = ImageCheck(distinct=len(rows))
    if sample is not None and sample < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, sample, replace=False))
    contents, owners = array("Q"), array("Q")  # the hash of each readable image, and its row
    workers = min(workers, len(rows) // CHUNK_IMAGES)
    for chunk, images in ordered_map(_reader, _chunks(index, rows), workers):
        for (row, reference), seen in zip(chunk, images, strict=True):
            _count(result, seen)
            if seen.reason:
                problem = {
                    "row": row,
                    "image": without_secrets(reference),
                    "problem": "missing" if seen.reason.startswith(MISSING) else "unreadable",
                    "reason": seen.reason,
                }
                if len(result.examples) < SHOWN:
                    result.examples.append(problem)
                if listing is not None:
                    listing(problem)
            else:
                contents.frombytes(seen.content)
                owners.append(row)
        progress(len(chunk), bad=result.bad)
    _count_copies(result, np.array(contents), np.array(owners), index, listing)
    return result


def _chunks(index: PairIndex, rows: np.ndarray) -> Iterator[list[tuple[int, str]]]:
    for start in range(0, len(rows), CHUNK_IMAGES):
        yield [(int(row), index[int(row)].image) for row in rows[start : start + CHUNK_IMAGES]]


def _reader() -> Callable[[Sequence[tuple[int, str]]], list[_Seen]]:
    return _see


def _see(chunk: Sequence[tuple[int, str]]) -> list[_Seen]:
    seen = []
    for _, reference in chunk:
        try:
            found = read_original(reference, side=1)
        except ImageError as error:
            seen.append(_Seen(error.reason))
            continue
        width, height = found.size
        seen.append(_Seen("", digest(found.data), found.format, found.mode, width, height, len(found.data)))
    return seen


def _count(result: ImageCheck, seen: _Seen) -> None:
    result.checked += 1
    if seen.reason:
        if seen.reason.startswith(MISSING):
            result.missing += 1
        else:
            result.unreadable += 1
        kind = re.sub(r"[0-9]+", "N", seen.reason)  # "17 bytes missing" and "18 bytes missing" are one kind
        result.reasons[kind if kind in result.reasons or len(result.reasons) < REASONS_KEPT else "other"] += 1
        return
    short, long = sorted((seen.width, seen.height))
    result.bytes += seen.bytes
    result.widths[seen.width] += 1
    result.heights[seen.height] += 1
    result.formats[seen.format] += 1
    result.modes[seen.mode] += 1
    result.small += short < SMALL_SIDE
    result.extreme += long > EXTREME_ASPECT * short


def _count_copies(
    result: ImageCheck, contents: np.ndarray, owners: np.ndarray, index: PairIndex, listing: Listing | None
) -> None:
    """How many of the contents [R] are those of an earlier row."""
    _, first, same = np.unique(contents, return_index=True, return_inverse=True)
    result.copies = len(contents) - len(first)
    if listing is None:
        return
    for position in np.flatnonzero(first[same] != np.arange(len(contents))):
        row, original = int(owners[position]), int(owners[first[same[position]]])
        image, copied = (without_secrets(index[number].image) for number in (row, original))
        listing({"row": row, "image": image, "problem": "copy", "of": copied})
