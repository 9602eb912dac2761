"""From a file, bytes or a scene reference to an upright RGB image, and from there to model pixels.

Images of any mode become 8-bit RGB.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from tcl.data.images.in_flight import LARGE, room
from tcl.data.images.kind import HEAD, format_of
from tcl.data.scenes import scenes
from tcl.data.storage.open import NOT_A_FILE, blocks
from tcl.data.storage.parquet_cells import open_image
from tcl.errors import DataError, UsageError, reason_of, without_secrets
from tcl.files.cache import CacheError


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


MISSING = "no such file"
"""What the reason begins with where there is none."""

IMAGES_HINT = "relative paths start from --images, else from the folder of the data file"
MAX_PIXELS = 178_956_970
"""Larger images are refused before decoding: 0.5 GB as RGB, the limit at which Pillow suspects an attack."""

# Formats that Pillow decodes and their suffixes. HEIF takes a plugin; without it such a file is an image that cannot be
# read, and not left out unsaid. Others are left out on purpose: EPS starts Ghostscript.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "MPO": (".mpo",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
    "QOI": (".qoi",),
    "PSD": (".psd",),
    "TGA": (".tga",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)

Source = str | Path | bytes | Image.Image
"""A path or another reference that `open_image` reads, a `scenes:` reference, a file's bytes, or an open image."""

Resizer = Literal["pillow", "torch"]
"""Who resizes: torch takes half the time.

They differ by one grey level. In an upright picture with much grain single pixels differ by more: there Pillow may
begin with the columns, torch always begins with the rows, and both round in between.
"""

Crop = tuple[float, float, float, float]
"""Part of an image in pixels: left, upper, right and lower edge."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height

_SURPLUS = 1.5  # pixels decoded per pixel wanted, along each side, at least; with fewer, fine texture loses contrast


class ImageError(DataError):
    """One image cannot be read.

    Args:
        name: the path, or what else identifies the image.
        reason: one line saying why, kept as an attribute for reports.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read image {name}: {reason}")
        self.reason = without_secrets(reason)


def decode(source: Source, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Read one image as upright RGB.

    The EXIF orientation is applied. Of an animation the first frame is taken. Transparency is laid over white. 16-bit
    samples are scaled to 8 bits, not clipped; see `to_rgb` for integer and float images. Colour profiles are ignored,
    as in the published pipeline.

    Args:
        source: what to read.
        at_least: height and width that are enough: a JPEG is decoded at a half, a quarter or an eighth of its
            resolution where that leaves as many. None decodes every pixel.

    Returns:
        an image of mode RGB.

    Raises:
        ImageError: the image is missing, damaged, cut off, larger than `MAX_PIXELS`, or of an unknown format.
    """
    with _open(source) as image:
        if at_least is not None and image is not source and isinstance(image, JpegImageFile):
            height, width = at_least[::-1] if orientation_of(image) in _SIDEWAYS else at_least
            _reduce(image, min(image.height / height, image.width / width))
        return _load(image, image is not source)


def decode_crops(
    source: Source, choose: Callable[[int, int], Sequence[Crop]], size: tuple[int, int]
) -> tuple[Image.Image, list[Crop]]:
    """Read one image of which only crops are wanted, each to be resized to `size`.

    A JPEG is decoded at a half, a quarter or an eighth of its resolution where every crop still has at least 1.5 times
    the pixels it is wanted at, along each side. That saves time and memory on large photographs, and changes the result
    by about one grey level on average, more in fine texture: the decoder averages whole blocks of pixels, where a
    resize weighs each.

    Args:
        source: as for `decode`.
        choose: given the width and height of the upright image, the crops.
        size: height and width in pixels that each crop will be resized to.

    Returns:
        the upright RGB image, perhaps reduced, and the crops in its pixels.

    Raises:
        ImageError: as for `decode`.
    """
    with _open(source) as image:
        if not isinstance(image, JpegImageFile):
            image.load()  # before the EXIF is asked for: a PNG would load itself there, and its damage go unnoticed
        width, height = image.size
        if orientation_of(image) in _SIDEWAYS:
            width, height = height, width
        crops = choose(width, height)
        if image is not source:  # an open image stays as its owner has it
            surplus = min(min((right - left) / size[1], (low - up) / size[0]) for left, up, right, low in crops)
            _reduce(image, surplus / _SURPLUS)
        image = _load(image, image is not source)
    x, y = image.width / width, image.height / height
    return image, [(left * x, upper * y, right * x, lower * y) for left, upper, right, lower in crops]


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The published evaluation transform: bicubic, the whole image squashed to the given size.

    Args:
        image: an RGB image.
        size: height and width in pixels.

    Returns:
        pixels [3, H, W], uint8.
    """
    pixels = np.empty((3, *size), np.uint8)
    resize_into(image, pixels)
    return pixels


def resize_into(image: Image.Image, pixels: np.ndarray, resizer: Resizer = "pillow") -> None:
    """The same into an array that is there.

    Args:
        image: an RGB image.
        pixels: [3, H, W], uint8; is overwritten.
        resizer: `torch` needs that package. What is enlarged is left to Pillow: it takes no time, and there the two
            differ by more.
    """
    _, height, width = pixels.shape
    if resizer == "torch" and image.height >= height and image.width >= width:
        _resize_by_torch(image, pixels)
    else:
        pixels[:] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def _resize_by_torch(image: Image.Image, pixels: np.ndarray) -> None:
    import torch

    source = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # [1, 3, h, w], as it lies in memory
    resized = torch.nn.functional.interpolate(source, pixels.shape[1:], mode="bicubic", antialias=True)
    torch.from_numpy(pixels).copy_(resized[0])


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "in memory")
    return str(source)


@contextmanager
def _open(source: Source) -> Iterator[Image.Image]:
    """An image of which the header has been read; whatever goes wrong with it inside the block is an `ImageError`."""
    name = _name(source)
    try:
        with warnings.catch_warnings():
            # Only filters about Pillow: should two threads leave this block crosswise, nothing else is silenced.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` decides
            with _open_unchecked(source, name) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(name, f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
                if 0 in image.size:
                    raise ImageError(name, f"{image.width} x {image.height} pixels")
                yield image
    except (ImageError, CacheError):  # a full disk is no matter of this image
        raise
    except Image.DecompressionBombError:
        raise ImageError(name, f"more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(name, "not an image, or of an unknown format") from None
    except FileNotFoundError:
        raise ImageError(name, why_missing(name)) from None
    except UsageError as error:
        raise ImageError(name, error.message) from error
    except MemoryError:  # a matter of this machine
        raise
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise ImageError(name, reason) from error


@contextmanager
def _open_unchecked(source: Source, name: str) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    if isinstance(source, str) and source.startswith(scenes.PREFIX):
        yield scenes.render(source)
        return
    try:
        if not isinstance(source, bytes):
            _refuse_what_blocks(str(source))
        file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else open_image(str(source))
    except IsADirectoryError:
        raise ImageError(name, "this is a folder") from None
    with file:
        if not file.seek(0, os.SEEK_END):
            raise ImageError(name, "the file is empty")
        file.seek(0)
        try:
            image = Image.open(file, formats=_available_formats())
        except UnidentifiedImageError:
            file.seek(0)
            raise ImageError(name, _unidentified(format_of(file.read(HEAD)))) from None
        with image:
            yield image


def _unidentified(kind: str) -> str:
    """Why no decoder takes a file that begins as this format does."""
    if not kind:
        return "not an image, or of an unknown format"
    if kind == "HEIF" and "HEIF" not in _available_formats():
        return "a HEIF image, an unknown format to Pillow without its plugin"
    return f"damaged, or a kind of {kind} that cannot be decoded here"


def why_missing(reference: str) -> str:
    """Why a file is not there, as far as its name tells."""
    if "\\" in reference and os.path.isfile(there := reference.replace("\\", "/")):
        return f"{MISSING}; its name holds backslashes, and {there} is there: write / between folders"
    return MISSING


def _refuse_what_blocks(reference: str) -> None:
    """A pipe would be waited for forever, a device be read forever."""
    if not reference:
        raise ImageError("without a name", "its row names no image")
    if blocks(reference):
        raise ImageError(reference, NOT_A_FILE)


@cache
def _available_formats() -> tuple[str, ...]:
    Image.init()
    _silence_libtiff()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _silence_libtiff() -> None:
    """Keep libtiff from writing to stderr, in the middle of progress bars; Pillow raises what it complains about.

    Pillow has no switch for it. The library is found through Pillow's own module, which is linked with it; where it is
    not, its lines stay.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)


def _reduce(image: Image.Image, factor: float) -> None:
    """Have a JPEG decoded at the smallest resolution that is no more than `factor` times smaller."""
    reduction = next((step for step in (8, 4, 2) if step <= factor), None)
    if reduction and isinstance(image, JpegImageFile):
        image.draft(None, (image.width // reduction, image.height // reduction))


def _load(image: Image.Image, own: bool) -> Image.Image:
    """The pixels of an image as upright RGB; `own` where nobody else has the image."""
    pixels = image.width * image.height
    if pixels < LARGE:
        return _upright(image, own)
    thread = room.enter(pixels)
    try:
        loaded = _upright(image, own)
    except BaseException:
        room.leave(pixels, thread)
        raise
    room.leave_with(loaded, pixels, thread)
    return loaded


def _upright(image: Image.Image, own: bool) -> Image.Image:
    image.load()
    if (method := _UPRIGHT.get(orientation_of(image))) is not None:
        image, own = image.transpose(method), True
        image.info.pop("exif", None)  # who looks at the image again is not to turn it again
    if own and image.mode == "RGB" and "transparency" not in image.info:
        return image._new(image.im)  # the same pixels without the file; a copy would take as much memory again
    return to_rgb(image)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none or it is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels are still good
        return 1
    return orientation if isinstance(orientation, int) and 1 < orientation <= 8 else 1
