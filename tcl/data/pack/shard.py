"""One tar shard of a pack: small JPEGs with their captions.

An archive that is there is complete, and its bytes depend on its rows alone.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from tcl.data.images.decode import ImageError
from tcl.data.images.original import Original, read_original
from tcl.errors import without_secrets
from tcl.files.atomic import write_whole

if TYPE_CHECKING:
    from tcl.data.pairs.table import PairIndex


class Shrunk(NamedTuple):
    """One image as JPEG, or the reason why there is none.

    Args:
        jpeg: the bytes of the file.
        copied: they are those of the source.
        bytes_before: size of the source's file.
        reason: empty when there is an image.
    """

    jpeg: bytes = b""
    copied: bool = False
    bytes_before: int = 0
    reason: str = ""


class Shrinker:
    """Makes the shorter side of images at most `size` pixels; a class, because worker processes get a pickle of it.

    Args:
        size: pixels; smaller images are never enlarged.
        quality: of JPEG, 1 to 95.
    """

    def __init__(self, size: int, quality: int) -> None:
        self.size, self.quality = size, quality

    def __call__(self, references: Sequence[tuple[int, str]]) -> list[Shrunk]:
        """Shrink images, given as rows and references."""
        return [self.shrink(reference) for _, reference in references]

    def shrink(self, reference: str) -> Shrunk:
        """Read one image and shrink it; bad images give a reason, not an exception."""
        try:
            original = read_original(reference, self.size)
            if self._is_fine(original):
                return Shrunk(original.data, True, len(original.data))
            return Shrunk(self._encode(original, reference), False, len(original.data))
        except ImageError as error:
            return Shrunk(reason=error.reason)

    def _is_fine(self, original: Original) -> bool:
        """Compressing a JPEG again would only cost quality."""
        small = min(original.size) <= self.size
        return small and original.format == "JPEG" and original.mode == "RGB" and not original.oriented

    def _encode(self, original: Original, reference: str) -> bytes:
        image, scale = original.image, self.size / min(original.size)
        if scale < 1:
            width, height = (round(side * scale) for side in original.size)
            # A box filter takes images down to three times the size first: many times faster, and hardly visible.
            image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        file = BytesIO()
        try:
            image.save(file, "JPEG", quality=self.quality)
        except (OSError, ValueError) as error:  # a side of more than 65,500 pixels
            width, height = image.size
            raise ImageError(reference, f"{width} x {height} pixels cannot be written as JPEG") from error
        return file.getvalue()


Row = tuple[int, str]
"""The number of a row, and its image."""

Results = Iterator[tuple[Sequence[Row], list[Shrunk]]]
"""Rows in portions, with their images."""


@dataclass
class Stats:
    """What is in a shard: images, how many of them are copies of their files, bytes, and what could not be read."""

    images: int = 0
    copied: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Shard:
    """A part of the rows.

    Args:
        folder: of the pack.
        number: counted from 0.
        start: its first row.
        stop: the row behind its last.
    """

    folder: Path
    number: int
    start: int
    stop: int

    @property
    def tar(self) -> Path:
        """The archive; there is none where not one image could be read."""
        return self.folder / f"{self.number:05}.tar"

    @property
    def stats_file(self) -> Path:
        """What makes the shard complete."""
        return self.folder / f"{self.number:05}_stats.json"

    def stats(self) -> Stats:
        """Of a complete shard."""
        return Stats(**json.loads(self.stats_file.read_text(encoding="utf-8")))

    def is_complete(self) -> bool:
        """Was it written to its end, and is it still there?"""
        return self.stats_file.exists() and (self.tar.exists() or not self.stats().images)

    def write(self, index: PairIndex, results: Results, report: Callable[[int, int], object]) -> None:
        """Write the archive, then the stats.

        Args:
            index: the pairs.
            results: the images of this shard are the next.
            report: called with numbers of rows that were done, and of those that failed.
        """
        stats, row = Stats(), self.start
        partial = self.tar.with_name(f".{self.tar.name}.partial")
        try:
            with _create(partial) as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    while row < self.stop:
                        rows, images = next(results)
                        failed = len(stats.errors)
                        for (number, reference), image in zip(rows, images, strict=True):
                            _add(tar, stats, index, number, reference, image)
                        row += len(rows)
                        report(len(rows), len(stats.errors) - failed)
                file.flush()
                os.fsync(file.fileno())
            if stats.images:
                partial.replace(self.tar)
        finally:
            partial.unlink(missing_ok=True)
        write_whole(self.stats_file, json.dumps(asdict(stats)) + "\n")


def _add(tar: tarfile.TarFile, stats: Stats, index: PairIndex, row: int, reference: str, image: Shrunk) -> None:
    if image.reason:
        stats.errors.append({"row": row, "image": without_secrets(reference), "reason": image.reason})
        return
    pair = index[row]
    values = {"captions": pair.captions, "image_id": pair.image_id, "image": without_secrets(pair.image)}
    text = json.dumps(values, ensure_ascii=False).encode()
    for suffix, data in (("jpg", image.jpeg), ("json", text)):
        member = tarfile.TarInfo(f"{row:09}.{suffix}")  # of time 0 and owner 0
        member.size = len(data)
        tar.addfile(member, BytesIO(data))
    stats.images += 1
    stats.copied += image.copied
    stats.bytes_before += image.bytes_before
    stats.bytes_after += len(image.jpeg)


def _create(path: Path) -> IO[bytes]:
    return path.open("wb")
