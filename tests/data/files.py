"""Bytes of image files, for tests."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def jpeg(width: int, height: int, seed: int = 0, **options: Any) -> bytes:
    """A JPEG of noise; `mode` and `orientation` may be given."""
    mode, orientation = options.pop("mode", "RGB"), options.pop("orientation", None)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG of one half-transparent grey."""
    file = BytesIO()
    Image.fromarray(np.full((height, width, 4), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()
