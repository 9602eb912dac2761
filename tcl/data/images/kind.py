"""Which format a file has, from its first bytes: where its name does not say, or nothing can decode it."""

from __future__ import annotations

HEAD = 32
"""Bytes that are looked at."""

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"qoif": "QOI",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"heim": "HEIF"}


def format_of(head: bytes) -> str:
    """The format of an image file, empty where these are no such bytes.

    Args:
        head: its first `HEAD` bytes.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[4:8] == b"ftyp":
        brands = (head[8:12], *(head[start : start + 4] for start in range(16, len(head), 4)))
        return next((name for brand, name in _BRANDS.items() if brand in brands), "")
    return next((name for start, name in _STARTS.items() if head.startswith(start)), "")


def is_image_file(path: str) -> bool:
    """Whether a file begins as an image does; not where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return bool(format_of(file.read(HEAD)))
    except (OSError, ValueError):
        return False
