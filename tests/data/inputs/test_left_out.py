"""What of a folder is left out is said in one line, and what is called like nothing is looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcl.data.images.decode import decode
from tcl.data.images.kind import format_of
from tcl.data.inputs.listing import list_inputs
from tcl.data.pairs.table import read_pairs
from tcl.errors import UsageError
from tests.data.files import jpeg, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in (
        "a.png",
        "b/2.png",
        "b/small/2.png",
        "thumbs/a.png",
        "plain",
        "@eaDir/a.png",
        "__MACOSX/b/x.png",
        "b/._2.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(4, 4))
    for name in ("notes.md", "b/drawing.doc", "empty", ".hidden"):
        (root / name).write_bytes(b"no image" * (name != "empty"))
    return root


def test_files_that_are_left_out_are_counted(folder: Path) -> None:
    inputs = list_inputs(str(folder))
    assert list(inputs.ids) == ["a.png", "b/2.png", "b/small/2.png", "plain", "thumbs/a.png"]
    junk, foreign = inputs.warnings
    assert junk == f"{folder}: 3 files of @eaDir, __MACOSX and ._*, as @eaDir, are no data; left out"
    assert foreign == f"{folder}: 3 files are not images by name or content, for example b/drawing.doc; left out"
    assert decode(inputs.location(3)).size == (4, 4)


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 4))
    assert list_inputs(str(tmp_path)).warnings == ()


@pytest.mark.parametrize(
    ("patterns", "ids"),
    [
        (["thumbs"], ["a.png", "b/2.png", "b/small/2.png", "plain"]),
        (["b"], ["a.png", "plain", "thumbs/a.png"]),
        (["small", "plain"], ["a.png", "b/2.png", "thumbs/a.png"]),
        (["b/*"], ["a.png", "plain", "thumbs/a.png"]),
        (["2.png"], ["a.png", "plain", "thumbs/a.png"]),
    ],
)
def test_exclude(patterns: list[str], ids: list[str], folder: Path) -> None:
    assert list(list_inputs(str(folder), exclude=patterns).ids) == ids


def test_exclude_is_for_folders_of_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "rows.parquet").write_bytes(b"")
    for source in (str(folder / "*.png"), str(folder / "a.png"), str(tmp_path / "texts")):
        with pytest.raises(UsageError, match="is no folder"):
            list_inputs(source, exclude=["thumbs"])


def test_training_reads_the_same_images(folder: Path) -> None:
    for name in list_inputs(str(folder)).ids:
        (folder / name).with_suffix(".txt").write_text("a dog")
    index = read_pairs([str(folder)])
    assert [os.path.relpath(pair.image, folder) for pair in index] == list(list_inputs(str(folder)).ids)


def test_a_name_like_a_scene_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenes:val:0:1.png").write_bytes(png(4, 5))
    (tmp_path / "scenes:rows.csv").write_text("image,caption\na.png,a dog\n")
    inputs = list_inputs(str(tmp_path))
    assert list(inputs.ids) == ["scenes:val:0:1.png"]
    assert decode(inputs.location(0)).size == (4, 5)
    monkeypatch.chdir(tmp_path)
    assert list(list_inputs("scenes:val:0:1.png").ids) == ["scenes:val:0:1.png"]
    assert decode(list_inputs("scenes:val:0:1.png").location(0)).size == (4, 5)
    assert list(list_inputs("scenes:rows.csv").ids) == ["a.png"]
    assert [pair.image for pair in read_pairs(["scenes:rows.csv"])] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (png(4, 4)[:32], "PNG"),
        (jpeg(4, 4)[:32], "JPEG"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"RIFF\0\0\0\0WAVEfmt ", ""),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"BMW is a car, and BM no bitmap", ""),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", ""),
        (b"", ""),
    ],
)
def test_formats_by_their_first_bytes(head: bytes, kind: str) -> None:
    assert format_of(head) == kind
