"""From an image of any mode to 8-bit RGB. Imports no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB: transparency over white, deep samples scaled."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale integer or float samples to 0..255.

    Files of 16 bits and more do not say which value is white, and many hold 8 or 12 bits. So white is the smallest of 1
    (floats only), 255, 4095 and 65535 that no sample exceeds; samples below 0 or beyond 65535 are stretched from their
    minimum to their maximum. NaN and infinities become black.

    Args:
        values: samples [H, W], uint16, int32 or float32.

    Returns:
        samples [H, W], uint8.
    """
    samples = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = samples.min(), samples.max()
    if low < 0 or high > 65535:
        samples -= low
        white = high - low
    else:
        whites = (1, 255, 4095, 65535) if values.dtype.kind == "f" else (255, 4095, 65535)
        white = next(white for white in whites if high <= white)
    return (samples * (255 / white)).round().astype(np.uint8)
