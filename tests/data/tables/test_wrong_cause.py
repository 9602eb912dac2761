"""Tables and lists made by other tools: the message names what is wrong with them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tcl.data.check.images import check_images
from tcl.data.images.decode import ImageError, decode
from tcl.data.inputs.listing import list_inputs
from tcl.data.pairs.table import read_pairs
from tcl.errors import DataError
from tcl.training.preflight import _why_not
from tests.data.files import png


def test_backslashes_between_folders(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "1.png").write_bytes(png(4, 4))
    (tmp_path / "win.csv").write_text("image,caption\nimg\\1.png,a dog\n")
    index = read_pairs([str(tmp_path / "win.csv")])
    wanted = f"no such file; its name holds backslashes, and {tmp_path}/img/1.png is there: write / between folders"
    with pytest.raises(ImageError) as caught:
        decode(index[0].image)
    assert caught.value.reason == wanted
    assert _why_not(index[0].image) == f"{index[0].image}: {wanted}"
    checked = check_images(index, np.arange(1))
    assert checked.missing == 1 and not checked.unreadable and checked.examples[0]["reason"] == wanted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(100),
            "damaged, or a kind of AVIF that cannot be decoded here",
        ),
        (b"\0\0\0\x18ftypheic" + bytes(100), "a HEIF image, an unknown format to Pillow without its plugin"),
        (png(4, 4)[:12] + bytes(100), "damaged, or a kind of PNG that cannot be decoded here"),
        (b"\x89PNG is what it says", "not an image, or of an unknown format"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_one(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["auto", "image", "text"])
def test_names_that_end_in_nul(kind: str, tmp_path: Path) -> None:
    names = b"a.png\0b.png\0"
    (tmp_path / "names.lst").write_bytes(names)
    with pytest.raises(DataError, match=r"names\.lst: what is in it ends in NUL, and not in a line end") as caught:
        list_inputs(str(tmp_path / "names.lst"), kind)  # type: ignore[arg-type]
    assert caught.value.hint == r"tr '\0' '\n' < OLD > NEW"
    with pytest.raises(DataError, match="standard input: what is in it ends in NUL"):
        list_inputs("-", kind, stdin=io.BytesIO(names))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_lines_that_end_in_cr_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"image,caption\ra.png,a dog\rb.png,a cat\r")
    for read in (lambda source: read_pairs([source]), list_inputs):
        with pytest.raises(DataError, match=f"{name}: its lines end in CR alone, as on old Macs"):
            read(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"image,caption\r\na.png,a dog\r\n")
    assert len(read_pairs([str(tmp_path / name)])) == 1


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image,caption,caption\na.png,a dog,a cat\n")
    for read in (lambda source: read_pairs([source]), list_inputs):
        with pytest.raises(DataError, match=r"rows\.csv: two columns are called caption"):
            read(str(tmp_path / "rows.csv"))
    (tmp_path / "rows.csv").write_text("image,caption,,\na.png,a dog,,\n")  # as a spreadsheet leaves them
    assert len(read_pairs([str(tmp_path / "rows.csv")])) == 1
