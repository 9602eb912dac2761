"""From a file, bytes or a scene reference to an upright RGB image, and from there to model pixels. Imports no torch."""

from __future__ import annotations

import re
import unicodedata
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from tcl.data import scenes
from tcl.errors import DataError, UsageError

MAX_PIXELS = 178_956_970
"""Larger images are refused before decoding: 0.5 GB as RGB, the limit at which Pillow suspects an attack."""

# Formats that Pillow decodes by itself and their suffixes. Others are left out on purpose: EPS starts Ghostscript.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "MPO": (".mpo",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
    "QOI": (".qoi",),
    "PSD": (".psd",),
    "TGA": (".tga",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DataError):
    """One image cannot be read.

    Args:
        name: the path, or what else identifies the image.
        reason: one line saying why, kept as an attribute for reports.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read image {name}: {reason}")
        self.reason = reason


def decode(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Read one image as upright RGB.

    The EXIF orientation is applied. Of an animation the first frame is taken. Transparency is laid over white. 16-bit
    samples are scaled to 8 bits, not clipped; see `_to_eight_bits` for integer and float images. Colour profiles are
    ignored, as in the published pipeline.

    Args:
        source: a path, a `scenes:` reference, the bytes of a file, or an image that is open already.

    Returns:
        an image of mode RGB.

    Raises:
        ImageError: the image is missing, damaged, cut off, larger than `MAX_PIXELS`, or of an unknown format.
    """
    name = _name(source)
    try:
        with warnings.catch_warnings():
            # Only filters about Pillow: should two threads leave this block crosswise, nothing else is silenced.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            return _decode(source, name)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(name, f"more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(name, "not an image, or of an unknown format") from None
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except UsageError as error:
        raise ImageError(name, error.message) from error
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, reason) from error


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The published evaluation transform: bicubic, the whole image squashed to the given size.

    Args:
        image: an RGB image.
        size: height and width in pixels.

    Returns:
        pixels [3, H, W], uint8.
    """
    height, width = size
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def natural_key(path: str) -> tuple:
    """Sort key under which `2.jpg` precedes `10.jpg`: a total order, the same on every machine.

    Folders are compared name by name, numbers by value, letters without regard to case; what is still equal is ordered
    by the path itself.
    """
    folded = unicodedata.normalize("NFKC", path).casefold()
    return (tuple(_chunks(part) for part in folded.split("/")), path)


def _chunks(part: str) -> tuple:
    chunks: list[str | tuple[int, str]] = list(re.split(r"([0-9]+)", part))
    for i in range(1, len(chunks), 2):
        digits = str(chunks[i]).lstrip("0")
        chunks[i] = (len(digits), digits)  # compares as the number does, however long
    return tuple(chunks)


def _name(source: str | Path | bytes | Image.Image) -> str:
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "in memory")
    return str(source)


def _decode(source: str | Path | bytes | Image.Image, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return _finish(source, name)
    if isinstance(source, str) and source.startswith(scenes.PREFIX):
        return scenes.render(source)
    if not source:
        raise ImageError(name, "the file is empty")
    file: BinaryIO
    if isinstance(source, bytes):
        file = BytesIO(source)
    else:
        path = Path(source)
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(name, "the file is empty")
        if path.is_dir():
            raise ImageError(name, "this is a folder")
        file = path.open("rb")
    with file, Image.open(file, formats=_available_formats()) as image:
        return _finish(image, name)


@cache
def _available_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _finish(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(name, f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
    if 0 in image.size:
        raise ImageError(name, f"{image.width} x {image.height} pixels")
    image.load()
    return _to_rgb(_turn_upright(image))


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF: the pixels are still good
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
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
