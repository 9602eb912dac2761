"""Small copies of images, for pages."""

from __future__ import annotations

from io import BytesIO

from tcl.data.images.decode import Source, decode_crops

SIDE = 320  # pixels of the longer side; pages show it at half of that


def thumbnail(source: Source) -> bytes:
    """A small JPEG file of an image.

    Raises:
        ImageError: it cannot be read.
    """
    image, _ = decode_crops(source, lambda width, height: [(0, 0, width, height)], (SIDE, SIDE))
    image.thumbnail((SIDE, SIDE))
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
