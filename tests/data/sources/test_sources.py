"""What a user may write for data: globs, braces, conditions, weights; and what is said when nothing is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl.data.pairs.table import read_pairs
from tcl.data.sources.find import SourceRows, find_source
from tcl.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `part-1.csv`, `part-2.csv`, `part-10.csv` of 1, 2 and 10 rows, with a column `even`."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 10):
        rows = [f"{number}-{i}.jpg,a dog,{i % 2 == 0}" for i in range(number)]
        (tmp_path / f"part-{number}.csv").write_text("\n".join(["image,caption,even", *rows]))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("part-*.csv", [1, 2, 10]),
        ("part-?.csv", [1, 2]),
        ("**/part-[12].csv", [1, 2]),
        ("part-{10,2}.csv", [2, 10]),
        ("part-{1..2}.csv", [1, 2]),
        ("part-{2..1}.csv", [1, 2]),
        ("part-{1,1{,0}}.csv", [1, 10]),
        ("part-{1,2}*.csv", [1, 2, 10]),
        ("{part,part}-1.csv", [1]),
    ],
)
def test_patterns(text: str, numbers: list[int], folder: Path) -> None:
    assert [file.name for file in find_source(text).files] == [f"part-{number}.csv" for number in numbers]
    index = read_pairs([text])
    assert len(index) == sum(numbers)
    assert index.parts == [SourceRows(text, 0, sum(numbers), 1.0)]


def test_zeros_in_front_of_a_range_are_kept(folder: Path) -> None:
    for number in (8, 9, 10):
        (folder / f"x{number:03d}.csv").write_text(f"image,caption\n{number}.jpg,a dog\n")
    assert [pair.image_id for pair in read_pairs(["x{008..10}.csv"])] == ["8.jpg", "9.jpg", "10.jpg"]


def test_weights_are_recorded(folder: Path) -> None:
    index = read_pairs(["part-1.csv@2", "part-{2,10}.csv#even=True@0.25", "scenes:train:3@1e-2"])
    assert index.parts == [
        SourceRows("part-1.csv@2", 0, 1, 2.0),
        SourceRows("part-{2,10}.csv#even=True@0.25", 1, 7, 0.25),
        SourceRows("scenes:train:3@1e-2", 7, 10, 0.01),
    ]


def test_a_condition_may_leave_nothing_of_some_files(folder: Path) -> None:
    assert len(read_pairs(["part-*.csv#even=False"])) == 6  # none in part-1.csv
    with pytest.raises(DataError, match="no row has even=2"):
        read_pairs(["part-*.csv#even=2"])


@pytest.mark.parametrize("name", ["a@2.csv", "b.csv@2", "c*.csv", "d{1,2}.csv", "e#x=1@3", "f@"])
def test_a_file_that_is_really_called_so_wins(name: str, folder: Path) -> None:
    (folder / "b.csv").write_text("")
    (folder / name).write_text("image,caption\nx.jpg,a dog\n")
    source = find_source(f"{folder}/{name}") if name.endswith(".csv") else None
    if source:
        assert [file.name for file in source.files] == [f"{folder}/{name}"] and source.weight == 1
    else:
        with pytest.raises(UsageError, match="unknown data format"):
            find_source(name)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nothing-*.csv", r"no files match nothing-\*\.csv", "quote"),
        ("part-{1..3}.csv", r"no such file or folder: part-3\.csv", "check the path"),
        ("part-{1,3}*.csv", r"no files match part-3\*\.csv", "check the pattern"),
        ("part-{0..99999999}.csv", "more than 100,000 files", "range"),
        ("part-{0..9999}{0..9999}.csv", "more than 100,000 files", "range"),
        ("part-1.csv@0", "a weight is a number above 0", "part-1.csv@0.5"),
        ("part-1.csv@1e999", "a weight is a number above 0", "part-1.csv@0.5"),
        (
            "part-1.csv@-1",
            r"no such file or folder: part-1\.csv@-1",
            "a weight is a number above 0, as in part-1.csv@2",
        ),
        ("part-1.csv/x.csv", "no such file or folder", "check the path"),
        ("a\0b.csv", "NUL", None),
        ("shards.tar.gz", "is compressed", "unpack it: gunzip shards.tar.gz"),
        ("shards.tgz", "is compressed", "unpack it: gunzip shards.tgz"),
        ("pairs.jsonl.zst", "is compressed", "unpack it: unzstd pairs.jsonl.zst"),
    ],
)
def test_what_cannot_be_found(text: str, message: str, hint: str | None, folder: Path) -> None:
    for name in ("shards.tar.gz", "shards.tgz", "pairs.jsonl.zst"):
        (folder / name).write_text("")
    with pytest.raises(UsageError, match=message) as caught:
        read_pairs([text])
    assert hint is None or hint in str(caught.value.hint)


def test_a_later_source_that_is_missing_is_noticed_before_the_first_is_read(folder: Path) -> None:
    done: list[int] = []
    with pytest.raises(UsageError, match="absent"):
        read_pairs(["part-1.csv", "absent.csv"], progress=done.append)
    assert not done
