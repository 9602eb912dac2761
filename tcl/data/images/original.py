"""An image as it lies in its source: the bytes of its file, what its header says, its pixels."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from tcl.data.images.decode import ImageError, decode, decode_crops, orientation_of, why_missing
from tcl.data.scenes import scenes
from tcl.data.storage.parquet_cells import open_image
from tcl.errors import TclError
from tcl.files.cache import CacheError

MAX_BYTES = 1 << 30
"""Larger files are refused: they are held in memory, and no image of an allowed number of pixels needs as much."""

_JPEG = b"\xff\xd8\xff"  # how its files begin


class Original(NamedTuple):
    """One image.

    Args:
        data: the bytes of its file; of a rendered scene its pixels.
        format: as Pillow names it, or `scene`.
        mode: of its pixels in the file, such as `RGB`, `L` or `CMYK`.
        oriented: an EXIF orientation asks for its pixels to be turned.
        size: width and height of the upright image.
        image: upright, RGB; of a large JPEG a reduced one.
    """

    data: bytes
    format: str
    mode: str
    oriented: bool
    size: tuple[int, int]
    image: Image.Image


def read_original(reference: str, side: int) -> Original:
    """Read one image to its end; only so is a file found that was cut off.

    Args:
        reference: a path, or what else `tcl.data.images.decode.decode` takes.
        side: pixels that the shorter side is wanted at. A large JPEG is decoded at a fraction of its resolution that
            still has as many. That is several times faster, and reads all of the file too.

    Raises:
        ImageError: it is missing or damaged; the reason of a missing one begins with `MISSING`.
    """
    if reference.startswith(scenes.PREFIX):
        image = decode(reference)
        return Original(image.tobytes(), "scene", image.mode, False, image.size, image)
    data = _read(reference)
    try:
        if data.startswith(_JPEG):
            image, _ = decode_crops(data, lambda width, height: [(0, 0, width, height)], (side, side))
        else:
            image = decode(data)
    except ImageError as error:
        raise ImageError(reference, error.reason) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with Image.open(BytesIO(data)) as header:  # of a format that was accepted above
            orientation = orientation_of(header)
            size = header.size[::-1] if orientation >= 5 else header.size
            return Original(data, header.format or "unknown", header.mode, orientation != 1, size, image)


def _read(reference: str) -> bytes:
    try:
        with open_image(reference) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(reference, why_missing(reference)) from None
    except IsADirectoryError:
        raise ImageError(reference, "this is a folder") from None
    except CacheError:  # it holds for every image
        raise
    except TclError as error:
        raise ImageError(reference, getattr(error, "reason", error.message)) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ImageError(reference, getattr(error, "strerror", None) or str(error)) from error
    if len(data) > MAX_BYTES:
        raise ImageError(reference, f"larger than {MAX_BYTES} bytes")
    return data
