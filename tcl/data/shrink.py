"""One image to a small JPEG, for training from packed shards. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from tcl.data.images.decode import ImageError
from tcl.data.images.original import Original, read_original


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
