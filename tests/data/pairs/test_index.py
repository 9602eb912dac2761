"""Every source of pairs becomes the same rows; every kind of bad input says what and where."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tcl.data.pairs.table import Pair, PairIndex, read_pairs
from tcl.errors import DataError, UsageError

ROWS = [
    {"image": "a.jpg", "caption": "a dog", "split": "train"},
    {"image": "sub/b.jpg", "caption": ["a cat", "the cat, again"], "image_id": 7, "split": "val"},
]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def expected(folder: Path) -> list[Pair]:
    return [
        Pair(str(folder / "a.jpg"), ["a dog"], "a.jpg"),
        Pair(str(folder / "sub/b.jpg"), ["a cat", "the cat, again"], "7"),
    ]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_and_jsonl(mark: str, tmp_path: Path) -> None:
    for source in (
        write(tmp_path / "pairs.json", mark + json.dumps(ROWS)),
        write(tmp_path / "pairs.jsonl", mark + jsonl(*ROWS) + "\n\n"),
    ):
        index = read_pairs([source])
        assert list(index) == [index[0], index[1]] == expected(tmp_path)
        assert (len(index), index.skipped, index.skipped_reasons) == (2, 0, [])


@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_csv_and_tsv(suffix: str, comma: str, tmp_path: Path) -> None:
    lines = [
        ["file_name", " text ", "image_id", "other"],
        ["a.jpg", "a dog", "", "x"],
        ["sub/b.jpg", '"a cat, ""it"""', "7", ""],
    ]
    source = write(tmp_path / f"pairs{suffix}", "\ufeff" + "\r\n".join(comma.join(line) for line in lines))
    assert list(read_pairs([source])) == [
        expected(tmp_path)[0],
        Pair(str(tmp_path / "sub/b.jpg"), ['a cat, "it"'], "7"),
    ]


@pytest.mark.parametrize("image_key", ["image", "image_path", "filepath", "file_name", "path"])
@pytest.mark.parametrize("caption_key", ["caption", "captions", "text"])
def test_names_of_columns(image_key: str, caption_key: str, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", jsonl({image_key: "/data/a.jpg", caption_key: "a dog"}))
    assert read_pairs([source])[0] == Pair("/data/a.jpg", ["a dog"], "/data/a.jpg")


def test_images_folder_overrides_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    source = write(tmp_path / "pairs.json", json.dumps([*ROWS, {"image": "scenes:val:0:1", "caption": "x"}]))
    index = read_pairs([source], images=str(tmp_path / "photos"))
    assert list(index)[:2] == expected(tmp_path / "photos")
    assert index[2].image == "scenes:val:0:1"
    with pytest.raises(UsageError, match="no such folder"):
        read_pairs([source], images=str(tmp_path / "absent"))


def test_folder_with_sidecars(tmp_path: Path) -> None:
    for name in ("10.jpg", "2.png", "sub/1.JPEG", ".hidden.jpg", "notes.md", "lonely.jpg", "blank.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "")
    for name in ("10", "2", "sub/1"):
        write(tmp_path / f"{name}.txt", f"\ufeffcaption {name}\n\n  another one  \n")
    write(tmp_path / "blank.txt", "\n ...\n")
    index = read_pairs([str(tmp_path)])
    assert [pair.image_id for pair in index] == ["2.png", "10.jpg", "sub/1.JPEG"]
    assert index[0] == Pair(str(tmp_path / "2.png"), ["caption 2", "another one"], "2.png")
    assert index.skipped == 2
    assert any("lonely.jpg: no lonely.txt" in reason for reason in index.skipped_reasons)


def test_several_sources_keep_their_order(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", jsonl(*ROWS))
    index = read_pairs(["scenes:val:3:1", source, "scenes:train:2"])
    assert [pair.image_id for pair in index][0::3] == ["scenes:val:1:0", "a.jpg", "scenes:train:0:1"]
    assert len(index) == 7
    with pytest.raises(IndexError):
        index[7]


def test_conditions_select_rows(tmp_path: Path) -> None:
    for source in (
        write(tmp_path / "pairs.jsonl", jsonl(*ROWS)),
        write(tmp_path / "pairs.json", json.dumps(ROWS)),
        write(tmp_path / "pairs.csv", "image,caption,split\na.jpg,a dog,train\nb.jpg,a cat,val\n"),
    ):
        index = read_pairs([f"{source}#split=train"])
        assert (len(index), index.skipped, index[0].captions) == (1, 0, ["a dog"])
        with pytest.raises(DataError) as caught:
            read_pairs([f"{source}#split=test"])
        assert "split=test" in caught.value.message and "train, val" in caught.value.hint
        with pytest.raises(UsageError, match="not a condition"):
            read_pairs([f"{source}#train"])
    odd = write(tmp_path / "a#b=c.jsonl", jsonl(*ROWS))
    assert len(read_pairs([odd])) == 2


def test_rows_without_image_or_caption_are_counted_with_their_place(tmp_path: Path) -> None:
    bad = [
        {"caption": "no image"},
        {"image": "x.jpg"},
        {"image": "x.jpg", "caption": "..."},
        {"image": "", "caption": "x"},
    ]
    bad += [
        {"image": "x.jpg", "caption": []},
        {"image": "x.jpg", "caption": {"en": 5}},
        3,
        {"image": 5, "caption": "x"},
    ]
    index = read_pairs([write(tmp_path / "pairs.jsonl", jsonl(ROWS[0], *bad, ROWS[1]))])
    assert list(index) == expected(tmp_path)
    assert index.skipped == len(bad)
    assert index.skipped_reasons[0] == f"{tmp_path / 'pairs.jsonl'} line 2: no image; it has caption"
    assert "line 4: no words in the caption" in index.skipped_reasons[2]
    index = read_pairs([write(tmp_path / "pairs.json", json.dumps([ROWS[0], *bad]))])
    assert "row 3: no caption" in index.skipped_reasons[1]
    with pytest.raises(DataError, match="none of its 8 rows") as caught:
        read_pairs([write(tmp_path / "bad.jsonl", jsonl(*bad))])
    assert "line 1: no image" in caught.value.hint


def test_an_unquoted_comma_does_not_cut_a_caption_silently(tmp_path: Path) -> None:
    index = read_pairs([write(tmp_path / "pairs.csv", "image,caption\na.jpg,a dog\nb.jpg,a cat, sleeping\nc.jpg\n")])
    assert (len(index), index.skipped) == (1, 2)
    assert "line 3: more cells than columns" in index.skipped_reasons[0]


def test_empty_captions_in_a_list_are_dropped(tmp_path: Path) -> None:
    index = read_pairs([write(tmp_path / "pairs.jsonl", jsonl({"image": "a", "captions": ["", "!", None, "a dog"]}))])
    assert index[0].captions == ["a dog"] and index.skipped == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.json", '[\n{"image": "a"},\n{"image": }\n]', r"pairs\.json line 3: malformed JSON"),
        ("pairs.json", '{"image": "a"}\n{"image": "b"}', r"line 2: malformed JSON"),
        ("pairs.json", '{"image": "a", "caption": "b"}', "expected a list of rows, found dict"),
        ("pairs.json", "", "line 1: malformed JSON"),
        ("pairs.json", "[]", "no rows"),
        ("pairs.json", b'[\n"\xff"]', "line 2: not UTF-8"),
        ("pairs.jsonl", jsonl(ROWS[0]) + '{"image": "b', r"pairs\.jsonl line 2: malformed JSON"),
        ("pairs.jsonl", "", "no rows"),
        ("pairs.jsonl", jsonl(ROWS[0]).encode() + b"\xe9\n", "line 2: not UTF-8"),
        ("pairs.csv", "picture,caption\na,b\n", "no image column; its columns are picture, caption"),
        ("pairs.csv", "image,words\na,b\n", "no caption column; its columns are image, words"),
        ("pairs.csv", "image,caption\n", "no rows"),
        ("pairs.csv", "", "no rows"),
        ("pairs.csv", b"image,caption\na,caf\xe9\n", "line 2: not UTF-8"),
        ("pairs.csv", "image,caption\na,b".encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_malformed_files(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_pairs([write(tmp_path / name, content)])
    assert caught.value.exit_code == 1 and "\n" not in caught.value.message


def test_missing_and_empty_places(tmp_path: Path) -> None:
    for source in (str(tmp_path / "absent.json"), str(tmp_path / "absent"), str(tmp_path / "absent.json#split=train")):
        with pytest.raises(UsageError, match="no such file or folder"):
            read_pairs([source])
    with pytest.raises(DataError, match="no images") as caught:
        read_pairs([str(tmp_path)])
    assert ".jpg" in caught.value.hint
    write(tmp_path / "a.jpg", "")
    with pytest.raises(DataError, match="none of its 1 images has a caption file") as caught:
        read_pairs([str(tmp_path)])
    assert "a.txt" in caught.value.hint
    with pytest.raises(UsageError, match=r"unknown data format '\.xlsx'"):
        read_pairs([write(tmp_path / "pairs.xlsx", "")])
    with pytest.raises(UsageError, match="no data"):
        read_pairs([])
    with pytest.raises(UsageError, match="not a set of scenes"):
        read_pairs(["scenes:nowhere"])


def test_the_fingerprint_identifies_the_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", jsonl(*ROWS))
    first = read_pairs([source]).fingerprint
    assert len(first) == 64 and first == read_pairs([write(tmp_path / "pairs.json", json.dumps(ROWS))]).fingerprint
    swapped = read_pairs([write(tmp_path / "swapped.jsonl", jsonl(*reversed(ROWS)))]).fingerprint
    changed = read_pairs(
        [write(tmp_path / "changed.jsonl", jsonl(ROWS[0], {**ROWS[1], "caption": "a cat"}))]
    ).fingerprint
    assert len({first, swapped, changed}) == 3


def parquet(path: Path, columns: dict[str, list], **options: object) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_parquet(tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "pairs.parquet",
        {
            "image": ["a.jpg", "sub/b.jpg", None, "d.jpg"],
            "captions": [["a dog"], ["a cat", "the cat, again"], ["x"], []],
            "image_id": [None, 7, 8, 9],
            "split": ["train", "val", "val", "val"],
            "thumbnail": [b"\xff", b"", b"", b""],
        },
        row_group_size=2,
    )
    index = read_pairs([source])
    assert [pair[:2] for pair in index] == [pair[:2] for pair in expected(tmp_path)]
    assert (index.skipped, index.skipped_reasons[0]) == (2, f"{source} row 3: no image")
    assert [pair.image for pair in read_pairs([f"{source}#split=train"])] == [str(tmp_path / "a.jpg")]


def test_parquet_without_captions_names_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no caption column; its columns are image, words"):
        read_pairs([parquet(tmp_path / "b.parquet", {"image": ["a.jpg"], "words": ["a dog"]})])
    with pytest.raises(DataError, match=r"no image column; its columns are photo, thumb \(bytes\), caption"):
        read_pairs([parquet(tmp_path / "c.parquet", {"photo": ["a.jpg"], "thumb": [b"x"], "caption": ["a dog"]})])


def test_damaged_parquet(tmp_path: Path) -> None:
    rows = {"image": [f"{i}.jpg" for i in range(999)], "caption": [f"a dog {i}" for i in range(999)]}
    content = Path(parquet(tmp_path / "pairs.parquet", rows)).read_bytes()
    for damaged in (b"", b"image,caption\n", content[:-40], bytes(len(content) // 2) + content[len(content) // 2 :]):
        source = write(tmp_path / "bad.parquet", damaged)
        with pytest.raises(DataError, match=r"bad\.parquet: malformed Parquet") as caught:
            read_pairs([source])
        assert "\n" not in caught.value.message


def test_huge_captions_are_cut(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", jsonl({"image": "a.jpg", "caption": "dog " * 2_500_000}))
    (pair,) = read_pairs([source])
    assert pair.captions == [("dog " * 2_500_000)[:100_000]]


def test_rows_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.data.tables.formats.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("tcl.data.tables.json_stream.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("tcl.data.tables.json_stream._READ_BYTES", 64)
    row = json.dumps({"image": "b.jpg", "caption": "x" * 2000})
    with pytest.raises(DataError, match="line 2: longer than"):
        read_pairs([write(tmp_path / "pairs.jsonl", jsonl(ROWS[0]) + row)])
    with pytest.raises(DataError, match=r"line 2: malformed JSON: a row of more than"):
        read_pairs([write(tmp_path / "pairs.json", f"[{json.dumps(ROWS[0])},\n{row}]")])


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_json_lists_are_read_in_pieces(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.data.tables.json_stream._READ_BYTES", step)
    rows = [*ROWS, 12345, {"image": "é€😀.jpg", "caption": '[{\\"]'}, None, {"image": "c", "caption": "x"}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)):
        index = read_pairs([write(tmp_path / "pairs.json", f"\n {text} \n")])
        assert [pair.image for pair in index][2:] == [str(tmp_path / "é€😀.jpg"), str(tmp_path / "c")]
        assert index.skipped_reasons[0].endswith("row 3: not an object but int") and index.skipped == 2
    bad = '[\n{"image": "a", "caption": "b"},\n{"image": "a",\n"caption" "b"}\n]'
    with pytest.raises(DataError, match="line 4: malformed JSON: Expecting ':'"):
        read_pairs([write(tmp_path / "pairs.json", bad)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "Expecting ',' delimiter"),
        ("[1 2]", "Expecting ',' delimiter"),
        ("[1,]", "Expecting value"),
        ('["', "Unterminated string"),
        ("[1]\n]", "line 2: malformed JSON: Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5000 + "]", "malformed JSON: Exceeds the limit"),
    ],
)
def test_malformed_json_lists(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs([write(tmp_path / "pairs.json", content)])


def test_hostile_lines_are_named(tmp_path: Path) -> None:
    for line, message in (("[" * 100_000, "nested too deeply"), ("1" * 5000, "Exceeds the limit")):
        with pytest.raises(DataError, match=f"line 2: malformed JSON: {message}"):
            read_pairs([write(tmp_path / "pairs.jsonl", jsonl(ROWS[0]) + line)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "memory.jsonl").symlink_to("/proc/self/mem")  # is there, may be opened, fails when read
    with pytest.raises(DataError, match=r"cannot read .*memory\.jsonl: Input/output error"):
        read_pairs([str(tmp_path / "memory.jsonl")])
    locked = Path(write(tmp_path / "locked.jsonl", jsonl(*ROWS)))
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # the superuser may read it
        with pytest.raises(DataError, match=r"cannot read .*locked\.jsonl: Permission denied"):
            read_pairs([str(locked)])


def test_names_that_are_not_unicode_are_refused_where_they_are_found(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with pytest.raises(UsageError, match=r"caf\\udce9/pairs\.jsonl: its name is not Unicode"):
        read_pairs([write(folder / "pairs.jsonl", jsonl(*ROWS))])
    for name in ("a", os.fsdecode(b"caf\xe9")):
        write(tmp_path / f"{name}.jpg", "")
        write(tmp_path / f"{name}.txt", "a dog")
    index = read_pairs([str(tmp_path)])
    assert [pair.image_id for pair in index] == ["a.jpg"] and index.skipped == 2  # the image, and the folder
    assert all("its name is not Unicode" in reason for reason in index.skipped_reasons)
    source = write(tmp_path / "pairs.jsonl", jsonl({"image": "caf\udce9.jpg", "caption": "a dog"}, ROWS[0]))
    assert read_pairs([source]).skipped_reasons == [f"{source} line 1: the name of its image is not Unicode"]


def test_progress_counts_every_row(tmp_path: Path) -> None:
    done: list[int] = []
    source = write(tmp_path / "pairs.jsonl", jsonl(*ROWS * 700, 3))
    read_pairs([source, "scenes:train:5"], progress=done.append)
    assert sum(done) == 1401 + 5 and len(done) == 3


def test_large_sources_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.data.pairs.table._BATCH_ROWS", 4)
    index = read_pairs(["scenes:train:11"], cache=False)
    assert len(index) == len(list(index)) == 11
    copy: PairIndex = pickle.loads(pickle.dumps(index))
    assert list(copy) == [index[i] for i in range(11)]
