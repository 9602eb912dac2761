"""Any source becomes the same list of inputs, each id once, nothing left out unsaid."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl.data.images.decode import ImageError, decode
from tcl.data.inputs.listing import Inputs, list_inputs
from tcl.data.strings import Strings
from tcl.errors import DataError, UsageError
from tests.data.files import jpeg, png
from tests.data.sources.test_tar import pack

NAMES = ["1.png", "2.jpg", "10.png", "b/3.png", "ünï 7.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in (*NAMES, ".hidden.png", "notes.md", ".cache/9.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(4, 4))
    return root


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """`memory://box/`, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opens(inputs: Inputs) -> list[tuple[int, int]]:
    return [decode(inputs.location(row)).size for row in range(len(inputs))]


# --- the list ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(alphabet="aé\0\n😀", max_size=4)))
def test_strings_are_a_sequence_of_strings(texts: list[str]) -> None:
    strings = Strings.of(iter(texts))
    assert list(strings) == texts == strings and len(strings) == len(texts)
    assert [strings[row] for row in range(-len(texts), len(texts))] == texts + texts
    assert strings[1:3] == texts[1:3] == strings.part(1, 3)
    assert strings.repeated() == {text for text in texts if texts.count(text) > 1}
    with pytest.raises(IndexError):
        strings[len(texts)]


def test_a_saved_list_is_the_same_list(folder: Path, tmp_path: Path) -> None:
    inputs = list_inputs(str(folder))
    inputs.save(tmp_path / "inputs.arrow")
    copy = Inputs.open(tmp_path / "inputs.arrow")
    assert (copy.kind, copy.ids, copy.values, copy.stamp) == (inputs.kind, inputs.ids, inputs.values, inputs.stamp)
    assert [copy.location(row) for row in range(5)] == [inputs.location(row) for row in range(5)]
    assert opens(copy) == [(4, 4)] * 5
    rows = write(tmp_path / "rows.jsonl", [{"id": 7, "text": "one"}, {"id": 8, "text": "two"}])
    list_inputs(rows).save(tmp_path / "inputs.arrow")
    assert (Inputs.open(tmp_path / "inputs.arrow").ids, Inputs.open(tmp_path / "inputs.arrow").values) == (
        ["7", "8"],
        ["one", "two"],
    )


def test_a_damaged_list_is_said_to_be(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "inputs.arrow"
    list_inputs(str(folder)).save(path)
    for content in (path.read_bytes()[:200], b"", b"ARROW1\0\0nonsense"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot read the list of inputs"):
            Inputs.open(path)
    with pytest.raises(DataError, match="No such file"):
        Inputs.open(tmp_path / "absent.arrow")


def test_the_stamp_changes_with_the_inputs(folder: Path) -> None:
    before = list_inputs(str(folder))
    assert list_inputs(str(folder)).stamp == before.stamp
    stamps = {before.stamp}
    os.utime(folder / "b/3.png", ns=(1, 1))
    stamps.add(list_inputs(str(folder)).stamp)
    (folder / "b/3.png").write_bytes(png(5, 5))
    stamps.add(list_inputs(str(folder)).stamp)
    (folder / "b/3.png").rename(folder / "b/4.png")
    stamps.add(list_inputs(str(folder)).stamp)
    (folder / "b/4.png").unlink()
    stamps.add(list_inputs(str(folder)).stamp)
    assert len(stamps) == 5
    parts = [before.slice(0, 3), before.slice(3, 5), list_inputs(str(folder)).slice(0, 3)]
    assert [*parts[0].ids, *parts[1].ids] == before.ids
    assert len({part.stamp for part in parts} | {before.stamp}) == 4


def test_the_stamp_changes_with_a_shard(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", [("k.jpg", jpeg(8, 8))])
    before = list_inputs(shard).stamp
    assert list_inputs(shard).stamp == before
    pack(tmp_path / "a.tar", [("k.jpg", jpeg(8, 8, seed=1))])
    os.utime(shard, ns=(1, 1))
    assert list_inputs(shard).stamp != before


# --- folders and globs -------------------------------------------------------------------------------------------


def test_a_folder_in_natural_order(folder: Path) -> None:
    inputs = list_inputs(str(folder))
    left_out = f"{folder}: 1 file is not an image by name or content, for example notes.md; left out"
    assert inputs.ids == NAMES and inputs.warnings == (left_out,)
    assert opens(inputs) == [(4, 4)] * 5


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["1.png", "10.png", "ünï 7.png"]),
        ("**/*.png", ["1.png", "10.png", "b/3.png", "ünï 7.png"]),
        ("**", NAMES),
        ("?/*", ["b/3.png"]),
        ("[a-c]/**/*.p*", ["b/3.png"]),
        ("b/*.png", ["3.png"]),
        ("**/b/*", ["b/3.png"]),
    ],
)
def test_globs(folder: Path, pattern: str, expected: list[str]) -> None:
    inputs = list_inputs(f"{folder}/{pattern}")
    assert inputs.ids == expected
    assert opens(inputs) == [(4, 4)] * len(expected)


def test_links_are_followed_once_and_loops_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/5.png").write_bytes(png(4, 4))
    (tmp_path / "more/back").symlink_to(folder)
    (folder / "b/up").symlink_to("..")
    (folder / "b/self").symlink_to("self")
    (folder / "link").symlink_to(tmp_path / "more")
    (folder / "same").symlink_to(tmp_path / "more")
    (folder / "8.png").symlink_to("1.png")
    expected = ["1.png", "2.jpg", "8.png", "10.png", "b/3.png", "link/5.png", "ünï 7.png"]
    assert list_inputs(str(folder)).ids == expected
    assert list_inputs(f"{folder}/**/*").ids == expected


def test_folders_that_may_not_be_read_are_named() -> None:
    root = Path(tempfile.mkdtemp())
    try:
        for name in ("a/1.png", "b/2.png"):
            (root / name).parent.mkdir()
            (root / name).write_bytes(png(4, 4))
        (root / "a").chmod(0)
        root.chmod(0o755)
        script = (
            "import os, sys; from tcl.data.inputs.listing import list_inputs; from tcl.errors import DataError\n"
            "if os.getuid() == 0: os.seteuid(65534)\n"  # nobody
            f"inputs = list_inputs({str(root)!r}); print(*inputs.ids, *inputs.warnings)\n"
            f"try: list_inputs({str(root / 'a')!r})\n"
            "except DataError as error: print(error)\n"
            f"for name in ('*.png', '1.png', 'x.csv'):\n"
            f"  try: list_inputs({str(root)!r} + '/a/' + name)\n"
            "  except DataError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[0] == f"b/2.png cannot read {root}/a: Permission denied; its images are left out"
        assert lines[1] == f"cannot read {root}/a: Permission denied"
        assert lines[2:] == [f"cannot read {root}/a/{name}: Permission denied" for name in ("*.png", "1.png", "x.csv")]
    finally:
        (root / "a").chmod(0o755)
        shutil.rmtree(root)


def test_a_pipe_among_the_images_blocks_nothing(folder: Path) -> None:
    os.mkfifo(folder / "3.png")
    inputs = list_inputs(str(folder))
    with pytest.raises(ImageError, match="a pipe or device"):
        decode(inputs.location(inputs.ids.index("3.png")))


# --- lists -------------------------------------------------------------------------------------------------------


def test_a_list_of_images(folder: Path) -> None:
    (folder / "list.txt").write_text("10.png\nb/3.png\n\n10.png\nabsent.png\n", encoding="utf-8")
    inputs = list_inputs(str(folder / "list.txt"))
    assert (inputs.kind, inputs.ids) == ("image", ["10.png", "b/3.png", "10.png#2", "absent.png"])
    assert inputs.values[2] == "10.png"
    with pytest.raises(ImageError, match="no such file"):
        decode(inputs.location(3))
    (folder / "other.lst").write_text("1\n2\n")
    assert list_inputs(str(folder / "other.lst")).kind == "image"
    assert list_inputs(str(folder / "other.lst"), "text").values == ["1", "2"]


def test_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    images = list_inputs("-", stdin=io.BytesIO(b"10.png\nb/3.png\n"))
    assert (images.kind, images.ids, opens(images)) == ("image", ["10.png", "b/3.png"], [(4, 4)] * 2)
    texts = list_inputs("-", stdin=io.BytesIO("\ufeffa dog\n\na cät\n".encode()))
    assert (texts.kind, texts.ids, texts.values) == ("text", ["1", "3"], ["a dog", "a cät"])
    assert list_inputs("-", "text", stdin=io.BytesIO(b"1.png\n")).kind == "text"
    with pytest.raises(DataError, match="holds no image or text"):
        list_inputs("-", stdin=io.BytesIO(b""))
    with pytest.raises(DataError, match="standard input line 2: not UTF-8"):
        list_inputs("-", stdin=io.BytesIO(b"a\n\xff\n"))


def test_a_long_list_is_reported_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a dog\n" * 40_000)
    calls: list[int] = []
    assert len(list_inputs(str(tmp_path / "t.txt"), progress=calls.append)) == sum(calls) == 40_000
    assert len(calls) > 2


# --- tables ------------------------------------------------------------------------------------------------------


def test_columns_by_name(folder: Path) -> None:
    rows = [{"key": "x", "photo": "1.png", "said": ["one", "two"], "text": "no"}, {"key": "y", "photo": "10.png"}]
    source = write(folder / "rows.jsonl", rows)
    images = list_inputs(source, image_column="photo", id_column="key")
    assert (images.kind, images.ids, images.values) == ("image", ["x", "y"], ["1.png", "10.png"])
    texts = list_inputs(source, text_column="said", id_column="key")
    assert (texts.kind, texts.ids, texts.values) == ("text", ["x#1", "x#2", "y"], ["one", "two", ""])
    both = list_inputs(source, "image", image_column="photo", text_column="said")
    assert both.ids == ["1.png", "10.png"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("rows.jsonl", {"image_column": "foto"}, "no column foto among"),
        ("rows.jsonl", {"text_column": "txt"}, "no column txt among"),
        ("rows.jsonl", {"id_column": "key"}, "no column key among"),
        ("rows.jsonl", {"image_column": "image", "text_column": "text"}, "images or texts"),
        ("rows.jsonl", {"kind": "image", "text_column": "text"}, "says nothing about images"),
        ("rows.jsonl", {"kind": "text", "image_column": "image"}, "says nothing about texts"),
        ("rows.jsonl@2", {}, "embedded once"),
        (".", {"id_column": "key"}, "has no columns"),
        ("1.png", {"image_column": "key"}, "has no columns"),
        ("*.png", {"image_column": "key"}, "has no columns"),
        ("a.tar", {"image_column": "key"}, "a shard has no image column"),
    ],
)
def test_columns_that_cannot_be(folder: Path, source: str, options: dict[str, Any], message: str) -> None:
    write(folder / "rows.jsonl", [{"image": "1.png", "text": "one"}])
    pack(folder / "a.tar", [("k.jpg", jpeg(8, 8))])
    with pytest.raises(UsageError, match=message):
        list_inputs(str(folder / source), **options)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_equal_ids_are_refused_with_both_places(tmp_path: Path, name: str) -> None:
    rows = [{"id": "a", "image": "1.png"}, {"id": "b", "image": "2.png"}, {"id": "a", "image": "3.png"}]
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("id,image\na,1.png\nb,2.png\na,3.png\n")
    elif name.endswith("jsonl"):
        write(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = {"rows.csv": ("line 2", "line 4"), "rows.jsonl": ("line 1", "line 3")}.get(name, ("row 1", "row 3"))
    with pytest.raises(DataError, match=f"the id a: .*{name} {first} and .*{name} {second}"):
        list_inputs(str(path))


def test_a_row_without_an_id_whose_number_is_the_id_of_another(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rows.jsonl", [{"id": "", "text": "a"}, {"id": None, "text": "b"}, {"id": 2, "text": "c"}]
    )
    with pytest.raises(DataError, match=r"the id 2: .* line 2 and .* line 3") as caught:
        list_inputs(source)
    assert caught.value.hint == f"{source} line 2 has none, and its number stands for it: give it one"


def test_an_image_that_several_rows_name_gets_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"image": "1.png", "caption": text} for text in ("one", "two")])
    inputs = list_inputs(source)
    assert (inputs.ids, inputs.values) == (["1.png", "1.png#2"], ["1.png", "1.png"])


def test_rows_without_an_image_fail_alone(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"image": "1.png"}, {"image": None}, {"other": 1}, {"image": "absent.png"}]
    inputs = list_inputs(write(folder / "rows.jsonl", rows))
    assert inputs.ids == ["1.png", "2", "3", "absent.png"]
    for row, reason in ((1, "names no image"), (2, "names no image"), (3, "no such file")):
        with pytest.raises(ImageError, match=reason):
            decode(inputs.location(row))


def test_several_tables_and_a_condition(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name, image in (("a/1.csv", f"{folder}/1.png"), ("a/b/2.csv", "../../images/10.png"), ("a/b/10.csv", "x.png")):
        (tmp_path / name).write_text(f"image,split\n{image},test\nother.png,train\n")
    inputs = list_inputs(f"{tmp_path}/a/**/*.csv#split=test")
    assert inputs.ids == [f"{folder}/1.png", "../../images/10.png", "x.png"]
    assert opens(inputs.slice(0, 2)) == [(4, 4)] * 2
    assert inputs.location(2) == str(tmp_path / "a/b/x.png")
    assert list_inputs(f"{tmp_path}/a/b/{{2,10}}.csv#split=train").ids == ["2/other.png", "10/other.png"]
    with pytest.raises(DataError, match="no row has split=val"):
        list_inputs(f"{tmp_path}/a/*.csv#split=val")


def test_a_column_of_urls(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    bucket.pipe("/box/a.jpg", jpeg(8, 6))
    inputs = list_inputs(write(tmp_path / "rows.jsonl", [{"url": "memory://box/a.jpg"}]))
    assert (inputs.kind, opens(inputs)) == ("image", [(8, 6)])


def test_parquet_of_bytes(tmp_path: Path) -> None:
    files = [jpeg(8 + n, 8) for n in range(5)]
    pq.write_table(pa.table({"image": files, "caption": list("abcde")}), tmp_path / "p.parquet", row_group_size=2)
    inputs = list_inputs(str(tmp_path / "p.parquet"))
    assert (inputs.kind, inputs.ids, opens(inputs)) == ("image", list("12345"), [(8 + n, 8) for n in range(5)])
    assert list_inputs(str(tmp_path / "p.parquet"), "text").values == list("abcde")
    (tmp_path / "p.parquet").rename(tmp_path / "q.parquet")
    with pytest.raises(ImageError, match="no such file"):
        decode(inputs.location(0))


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(jpeg(20, 8))
    images = [
        {"bytes": jpeg(8, 8), "path": "x.jpg"},
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": jpeg(9, 9), "path": None},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(2):
        table = pa.table({"image": pa.array(images, kind), "label": [0, 1, 2, 3, 4]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=3)
    inputs = list_inputs(f"{tmp_path}/{{0..1}}.parquet")
    assert inputs.ids[:5] == ["0/x.jpg", "0/beside.jpg", "0/3", "0/4", "0/5"] and inputs.ids[5] == "1/x.jpg"
    assert [decode(inputs.location(row)).size for row in (0, 1, 4, 9)] == [(8, 8), (20, 8), (9, 9), (9, 9)]
    for row in (2, 3):
        with pytest.raises(ImageError, match="the cell is empty"):
            decode(inputs.location(row))
    one = list_inputs(f"{tmp_path}/0.parquet#label=4", id_column="label")
    assert (one.ids, opens(one)) == (["4"], [(9, 9)])


def test_parquet_of_paths_reads_no_other_column(folder: Path) -> None:
    table = pa.table({"path": ["1.png", "10.png"], "id": [3, 4], "vector": [np.zeros(4), np.zeros(4)]})
    pq.write_table(table, folder / "p.parquet")
    inputs = list_inputs(str(folder / "p.parquet"))
    assert (inputs.ids, opens(inputs)) == (["3", "4"], [(4, 4)] * 2)
    with pytest.raises(UsageError, match="no text column among path, id, vector"):
        list_inputs(str(folder / "p.parquet"), "text")


# --- shards ------------------------------------------------------------------------------------------------------


def test_shards(tmp_path: Path) -> None:
    for name, side in (("2.tar", 8), ("10.tar", 9)):
        members = [("a.jpg", jpeg(side, side)), ("a.txt", f"one {side}\n two "), ("a.json", b'{"key": "k%d"}' % side)]
        members += [(f"{side}.cls", "7"), (f"b{side}.png", png(side, side)), (f"b{side}.json", '{"caption": "three"}')]
        pack(tmp_path / name, members)
    one = list_inputs(f"{tmp_path}/2.tar")
    assert (one.kind, one.ids, opens(one)) == ("image", ["a.jpg", "b8.png"], [(8, 8)] * 2)
    both = list_inputs(f"{tmp_path}/{{2..10}}.tar".replace("2..10", "2,10"))
    assert both.ids == ["2/a.jpg", "2/b8.png", "10/a.jpg", "10/b9.png"]
    assert opens(both) == [(8, 8)] * 2 + [(9, 9)] * 2
    texts = list_inputs(f"{tmp_path}/*.tar", "text")
    assert texts.ids == ["2/a#1", "2/a#2", "2/b8", "10/a#1", "10/a#2", "10/b9"]
    assert texts.values[:3] == ["one 8", "two", "three"]
    given = list_inputs(f"{tmp_path}/*.tar", id_column="key")
    assert given.ids == ["k8", "b8.png", "k9", "b9.png"]
    assert list_inputs(f"{tmp_path}/*.tar#key=k9").ids == ["a.jpg"]


def test_damaged_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    pack(path, [("a.jpg", jpeg(8, 8)), ("b.json", "{"), ("c.txt", b"\xff"), ("d.txt", "four"), ("z.jpg", jpeg(64, 64))])
    texts = list_inputs(str(path), "text")
    assert (texts.ids, texts.values) == (["b", "c", "d"], ["", "", "four"])
    assert ["malformed JSON" in texts.warnings[0], "not UTF-8" in texts.warnings[1]] == [True, True]
    path.write_bytes(path.read_bytes()[:6000])
    images = list_inputs(str(path))
    assert images.ids == ["a.jpg"]
    assert "cut off at byte 6000" in images.warnings[0] and "left out" in images.warnings[0]
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="not a tar archive"):
        list_inputs(str(path))


# --- remotes -----------------------------------------------------------------------------------------------------


def test_remote_sources(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for name in ("1.jpg", "10.jpg", "2.jpg", "sub/3.jpg"):
        bucket.pipe(f"/box/in/{name}", jpeg(8, 6))
    bucket.pipe("/box/in/list.txt", b"1.jpg\nsub/3.jpg\nmemory://box/in/2.jpg\n")
    bucket.pipe("/box/in/rows.csv", b"image\nsub/3.jpg\n")
    bucket.pipe("/box/in/texts.txt", b"a dog\na cat\n")
    assert list_inputs("memory://box/in/{10,2}.jpg").ids == ["2.jpg", "10.jpg"]
    assert list_inputs("memory://box/{in,in/sub}/*.jpg").ids == ["1.jpg", "2.jpg", "10.jpg", "sub/3.jpg"]
    pack(tmp_path / "x.tar", [("k.jpg", jpeg(9, 9))])
    bucket.pipe("/box/in/a.tar", (tmp_path / "x.tar").read_bytes())
    pq.write_table(pa.table({"image": [jpeg(7, 7)]}), tmp_path / "x.parquet")
    bucket.pipe("/box/in/a.parquet", (tmp_path / "x.parquet").read_bytes())
    assert list_inputs("memory://box/in").ids == ["1.jpg", "2.jpg", "10.jpg", "sub/3.jpg"]
    assert list_inputs("memory://box/in/*.jpg").ids == ["1.jpg", "2.jpg", "10.jpg"]
    assert list_inputs("memory://box/in/texts.txt").values == ["a dog", "a cat"]
    sizes = {"in/**/*.jpg": 6, "in/list.txt": 6, "in/rows.csv": 6, "in/2.jpg": 6, "in/a.tar": 9, "in/a.parquet": 7}
    for name, height in sizes.items():
        inputs = list_inputs(f"memory://box/{name}")
        assert {size[1] for size in opens(inputs)} == {height}, name
    before = list_inputs("memory://box/in/a.tar").stamp
    pack(tmp_path / "x.tar", [("k.jpg", jpeg(9, 9, seed=1)), ("l.jpg", jpeg(9, 9))])
    bucket.pipe("/box/in/a.tar", (tmp_path / "x.tar").read_bytes())
    assert list_inputs("memory://box/in/a.tar").stamp != before


@pytest.mark.parametrize(
    ("source", "kind", "error", "message"),
    [
        ("memory://box/absent.csv", "auto", UsageError, "no such file or folder"),
        ("memory://box/absent.txt", "auto", UsageError, "no such file or folder"),
        ("memory://box/*.jpg", "auto", DataError, "holds no image"),
        ("memory://box/", "text", UsageError, "holds images, not texts"),
        ("nonsense://box/x.csv", "auto", UsageError, "unknown kind of URL"),
    ],
)
def test_remotes_that_are_not_there(
    bucket: fsspec.AbstractFileSystem, source: str, kind: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list_inputs(source, kind)


# --- nothing there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "kind", "error", "message"),
    [
        ("missing", None, "auto", UsageError, "no such file or folder"),
        ("missing.csv", None, "auto", UsageError, "no such file or folder"),
        ("missing/*.png", None, "auto", DataError, "holds no image"),
        ("missing/*.tar", None, "auto", UsageError, "no files match"),
        ("nul\0", None, "auto", UsageError, "NUL"),
        ("x.odd", "", "auto", UsageError, "unknown kind of source '.odd'"),
        ("empty", "folder", "auto", DataError, "holds no image"),
        ("empty.txt", "", "auto", DataError, "holds no image or text"),
        ("x.parquet", "", "auto", DataError, "malformed Parquet"),
        ("x.csv", "", "auto", DataError, "holds no rows"),
        ("x.csv", "image\n", "image", DataError, "holds no image"),
        ("x.jsonl", '{"text": "a"}\n{"text": \n', "auto", DataError, "line 2"),
        ("x.csv", "a,b\n1,2\n", "auto", UsageError, "no image or text column among a, b"),
        ("x.json", "[3]", "auto", DataError, "expected an object"),
        ("x.json", '[{"text": "a"}, 3]', "auto", DataError, "row 2: expected an object"),
        ("images", "folder", "text", UsageError, "holds images, not texts"),
        ("folder.csv", "folder", "auto", DataError, "holds no image"),
        ("x.tar.gz", "", "auto", UsageError, "is compressed"),
    ],
)
def test_bad_sources(
    tmp_path: Path, name: str, content: str | None, kind: Any, error: type[Exception], message: str
) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        list_inputs(str(path), kind)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_unicode_are_refused_where_they_are_found(folder: Path) -> None:
    os.rename(folder / "2.jpg", os.fsencode(folder) + b"/caf\xe9.jpg")
    os.rename(folder / "b", os.fsencode(folder) + b"/b\xff")
    inputs = list_inputs(str(folder))
    assert inputs.ids == ["1.png", "10.png", "ünï 7.png"]
    assert sorted(inputs.warnings) == [
        f"{folder}: 1 file is not an image by name or content, for example notes.md; left out",
        *(f"cannot read {folder}/{name}: its name is not Unicode; left out" for name in (r"b\udcff", r"caf\udce9.jpg")),
    ]
    odd = folder.rename(os.fsdecode(os.fsencode(folder) + b"\xe9"))
    for source in (odd, odd / "*.png", odd / "1.png"):
        with pytest.raises(UsageError, match=r"images\\udce9.*: its name is not Unicode"):
            list_inputs(str(source))


def test_images_of_a_table_or_list_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(4, 4))
    (tmp_path / "table.csv").write_text("image,caption\na.png,a dog\n", encoding="utf-8")
    (tmp_path / "list.lst").write_text("a.png\n", encoding="utf-8")
    for source in ("table.csv", "list.lst"):
        inputs = list_inputs(str(tmp_path / source), images=str(tmp_path / "photos"))
        assert list(inputs.ids) == ["a.png"] and Path(inputs.location(0)).is_file()
    with pytest.raises(UsageError, match="no such folder"):
        list_inputs(str(tmp_path / "table.csv"), images=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no table and no list"):
        list_inputs(str(tmp_path / "photos"), images=str(tmp_path / "photos"))


def test_the_columns_of_either_kind_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("Bild,n\na.png,1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no image or text column among Bild, n") as caught:
        list_inputs(str(tmp_path / "odd.csv"))
    assert "--image-column" in str(caught.value.hint)


def test_nothing_on_standard_input() -> None:
    with pytest.raises(DataError, match="holds no text") as caught:
        list_inputs("-", "text", stdin=io.BytesIO())
    assert "every line is an input" in str(caught.value.hint)
