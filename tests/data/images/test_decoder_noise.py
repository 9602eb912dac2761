"""Decoders raise what is wrong with an image; nothing writes it into the middle of a progress bar as well."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tcl.data.images.decode import ImageError, decode


def test_a_damaged_tiff_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes to stderr by itself, unless it is told not to."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "TIFF", compression="tiff_lzw")
    content = bytearray(file.getvalue())
    content[8:60] = bytes(255 - value for value in content[8:60])
    with pytest.raises(ImageError):
        decode(bytes(content))
    assert capfd.readouterr().err == ""
