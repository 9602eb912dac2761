"""Tar shards: every layout in use gives its pairs, their images are read in place, and damage is named and survived."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tcl.data.images.decode import ImageError, decode
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.data.storage.open import open_binary
from tcl.errors import DataError


def jpeg(grey: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (grey,) * 3).save(file, "JPEG")
    return file.getvalue()


def pack(path: Path, members: list[tuple[str, bytes | str]], format: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def reasons(index: PairIndex) -> list[str]:
    return [reason.partition(".tar ")[2] or reason for reason in index.skipped_reasons]


def test_img2dataset_and_webdataset_layouts(tmp_path: Path) -> None:
    status = {"status": "success", "url": "http://x/y.jpg", "width": 8, "key": "00001"}
    source = pack(
        tmp_path / "00000.tar",
        [
            ("00000.jpg", jpeg(0)),
            ("00000.txt", "a dog"),
            ("00001.jpg", jpeg(10)),
            ("00001.json", json.dumps({**status, "caption": "a cat"})),
            ("00001.txt", "not this one"),
            ("sub/00002.PNG", jpeg(20)),
            ("sub/00002.json", json.dumps({"captions": ["one", "two", ""], "image_id": 7})),
            ("sub/00003.txt", "first line\n\n  second line \n"),  # caption before image, and not beside it
            ("00004.webp", jpeg(40)),
            ("00004.json", json.dumps({"caption": None})),
            ("00004.txt", "\ufeffa bird"),
            ("00004.cls", "3"),
            ("._00004.jpg", b"junk"),
            ("sub/00003.jpeg", jpeg(30)),
        ],
    )
    index = read_pairs([source])
    assert [pair.captions for pair in index] == [
        ["a dog"],
        ["a cat"],
        ["one", "two"],
        ["first line", "second line"],
        ["a bird"],
    ]
    assert [pair.image_id for pair in index] == [
        f"{source}!00000.jpg",
        f"{source}!00001.jpg",
        "7",
        f"{source}!sub/00003.jpeg",
        f"{source}!00004.webp",
    ]
    assert [decode(pair.image).getpixel((0, 0)) for pair in index] == [(grey,) * 3 for grey in (0, 10, 20, 30, 40)]
    assert index.skipped == 0


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_formats_of_tar(format: int, tmp_path: Path) -> None:
    long = "deep/" * 25 + "x" * 90 if format == tarfile.USTAR_FORMAT else "deep/" * 60 + "é" * 80
    names = ["a", long, "50% off!"]
    members: list[tuple[str, bytes | str]] = []
    for grey, name in enumerate(names):
        members += [(f"{name}.jpg", jpeg(grey)), (f"{name}.txt", "a dog")]
    index = read_pairs([pack(tmp_path / "odd!name.tar", members, format)])
    assert [open_binary(pair.image).read() for pair in index] == [jpeg(grey) for grey in range(3)]
    assert index[2].image.split("!")[-1].startswith("50%25 off%21.jpg@")


def test_several_shards_and_conditions(tmp_path: Path) -> None:
    for shard in (2, 10):
        rows = [(f"{i}.json", json.dumps({"caption": "x", "split": "train" if i else "val"})) for i in range(3)]
        pack(tmp_path / f"{shard}.tar", [*rows, *((f"{i}.jpg", jpeg(i)) for i in range(3))])
    pattern = str(tmp_path / "*.tar")
    assert len({pair.image_id for pair in read_pairs([pattern])}) == 6
    index = read_pairs([f"{pattern}#split=val"])
    assert [pair.image_id for pair in index] == [f"{tmp_path}/2.tar!0.jpg", f"{tmp_path}/10.tar!0.jpg"]


def test_what_gives_no_pair_is_counted_and_named(tmp_path: Path) -> None:
    source = pack(
        tmp_path / "bad.tar",
        [
            ("good.jpg", jpeg(1)),
            ("good.txt", "a dog"),
            ("good.segmentation.png", jpeg(2)),
            ("good.png", jpeg(3)),
            ("good.txt", "another dog"),
            ("lonely.jpg", jpeg(4)),
            ("words.txt", "no image"),
            ("../up.jpg", jpeg(5)),
            ("../up.txt", "escapes"),
            ("/etc/root.jpg", jpeg(6)),
            ("/etc/root.txt", "escapes"),
            ("encoding.jpg", jpeg(7)),
            ("encoding.txt", b"caf\xe9"),
            ("json.jpg", jpeg(8)),
            ("json.json", '{"caption": '),
            ("list.jpg", jpeg(9)),
            ("list.json", "[1]"),
        ],
    )
    with tarfile.open(source, "a") as tar:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    before = sorted(tmp_path.iterdir())
    index = read_pairs([source])
    assert [(pair.captions, decode(pair.image).getpixel((0, 0))) for pair in index] == [(["a dog"], (1, 1, 1))]
    assert reasons(index) == [
        "good: good.txt is a second one of this key, which ends at the first dot",
        "good: good.png is a second one of this key, which ends at the first dot",
        "lonely: an image without a caption",
        "words: a caption without an image",
        "../up: its name leads out of the shard",
        "/etc/root: its name leads out of the shard",
        "encoding: encoding.txt: not UTF-8 text",
        "json: json.json: malformed JSON: Expecting value",
        "list: list.json: not an object but list",
        "link: a symbolic link, not a file",
    ]
    assert index.skipped == 12
    assert sorted(tmp_path.iterdir()) == before


def test_names_that_are_not_unicode_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("b.jpg", jpeg(0)), ("b.txt", "x"), ("zzzz.jpg", jpeg(1))], tarfile.GNU_FORMAT)
    content = bytearray(Path(path).read_bytes())
    at = content.index(b"zzzz.jpg")
    content[at] = 0xE9
    old = content[at + 148 : at + 154]
    content[at + 148 : at + 154] = b"%06o" % (int(old, 8) + 0xE9 - ord("z"))
    Path(path).write_bytes(content)
    index = read_pairs([path])
    assert len(index) == 1 and reasons(index) == ["?zzz: its name is not UTF-8"]


@pytest.mark.parametrize(
    ("cut", "rows", "reason"),
    [
        (-1, 3, "cut off: it has no end mark"),  # exactly behind the last member
        (-600, 2, "cut off at byte {end}, inside 2.txt"),
        (-1300, 2, "cut off at byte {end}, inside a header"),
    ],
)
def test_a_shard_that_is_cut_off_gives_what_is_before_the_cut(cut: int, rows: int, reason: str, tmp_path: Path) -> None:
    members = [
        (f"{i}.{suffix}", jpeg(i) if suffix == "jpg" else "a dog " * 200) for i in range(3) for suffix in ("jpg", "txt")
    ]
    path = Path(pack(tmp_path / "cut.tar", members))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 1536 + (cut if cut != -1 else 0)  # the caption takes three blocks
    end = end if cut != -1300 else last.offset + 100
    path.write_bytes(path.read_bytes()[:end])
    index = read_pairs([str(path)])
    assert len(index) == rows
    assert f"{path}: {reason.format(end=end)}" == index.skipped_reasons[-1]


def test_damage_inside_a_shard_ends_it_but_not_the_others(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("a.jpg", jpeg(0)),
        ("a.txt", "a dog"),
        ("b.jpg", jpeg(1)),
        ("b.txt", "a cat"),
    ]
    first, second = Path(pack(tmp_path / "1.tar", members)), pack(tmp_path / "2.tar", members)
    with tarfile.open(first) as tar:
        at = tar.getmember("b.jpg").offset
    content = bytearray(first.read_bytes())
    content[at : at + 512] = b"x" * 512
    first.write_bytes(content)
    index = read_pairs([str(tmp_path / "*.tar")])
    assert [pair.image_id for pair in index] == [f"{first}!a.jpg", f"{second}!a.jpg", f"{second}!b.jpg"]
    assert index.skipped_reasons == [f"{first}: damaged at byte {at}"]


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "none of its 1 rows", "the file is empty"),
        (b"<html>404</html>" * 99, "not a tar archive", "error page"),
        (b"<html>404</html>", "not a tar archive", "error page"),
        (bytes(10240), "holds no rows", "at least one image"),
        (b"\x1f\x8b\x08\0" + bytes(600), "is compressed", "gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed", "unzstd"),
    ],
)
def test_files_that_are_no_shards(content: bytes, message: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs([str(tmp_path / "x.tar")])
    assert hint in str(caught.value.hint) and "\n" not in caught.value.message


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"-0000000001\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"1_000000000\0"]
)
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"S"])
def test_hostile_headers_end_the_shard(size: bytes, kind: bytes, tmp_path: Path) -> None:
    path = Path(pack(tmp_path / "x.tar", [("a.jpg", jpeg(0)), ("a.txt", "a dog"), ("b.jpg", jpeg(1))]))
    with tarfile.open(path) as tar:
        at = tar.getmember("b.jpg").offset
    content = bytearray(path.read_bytes())
    header = content[at : at + 512]
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[at : at + 512] = header
    path.write_bytes(content)
    index = read_pairs([str(path)])
    assert len(index) == 1 and index.skipped == 1
    assert (
        "cut off" in index.skipped_reasons[0] or "damaged" in index.skipped_reasons[0] or "sparse" in reasons(index)[0]
    )


def test_a_shard_that_goes_or_shrinks_while_it_is_in_use(tmp_path: Path) -> None:
    members = [
        (f"{i}.{suffix}", jpeg(i) if suffix == "jpg" else "a dog") for i in range(2) for suffix in ("jpg", "txt")
    ]
    vanished, shrunk = Path(pack(tmp_path / "a.tar", members)), Path(pack(tmp_path / "b.tar", members))
    index = read_pairs([str(vanished), str(shrunk)])
    vanished.unlink()
    with pytest.raises(ImageError, match=r"a\.tar!0\.jpg.*no such file"):
        decode(index[0].image)
    decode(index[3].image)
    with shrunk.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ImageError, match=r"b\.tar is cut off: 2000 bytes"):
        decode(index[3].image)
