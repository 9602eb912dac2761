"""Rows of CSV files, and quotes that are not closed: an error with its line, never rows that are gone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tcl.data.pairs.pair import MAX_CAPTION
from tcl.data.pairs.table import read_pairs
from tcl.data.tables.csv_lines import MAX_CELL_LINES
from tcl.data.tables.json_stream import MAX_ROW_BYTES
from tcl.errors import DataError

PLAIN = "".join(f"{number}.jpg,a dog\n" for number in range(MAX_CELL_LINES + 10))


def write(folder: Path, text: str, name: str = "pairs.csv") -> str:
    (folder / name).write_text(f"image,caption\n{text}".replace(",", "\t" if name.endswith(".tsv") else ","))
    return str(folder / name)


@pytest.mark.parametrize(
    ("text", "line", "where"),
    [
        ('a.jpg,a dog\nb.jpg,"a cat\n', 3, "before the end of the file"),
        ('a.jpg,a dog\nb.jpg,"a cat', 3, "before the end of the file"),
        ('a.jpg,"a dog"" \nb.jpg,a cat\n', 2, "before the end of the file"),
        ('a.jpg,"a dog\n' + PLAIN, 2, f"within {MAX_CELL_LINES} lines"),
        ('a.jpg,"a dog\nb.jpg,a bird\nc.jpg,"a cat, asleep"\n' + PLAIN, 2, "before line 4"),
        ('"a\n.jpg","a dog\n' + PLAIN, 3, f"within {MAX_CELL_LINES} lines"),
        ('a.jpg,"a" dog,"big\n', 2, "before the end of the file"),
    ],
)
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
def test_an_open_quote_is_an_error_where_it_opens(text: str, line: int, where: str, name: str, tmp_path: Path) -> None:
    source = write(tmp_path, text, name)
    with pytest.raises(DataError) as caught:
        read_pairs([source])
    assert caught.value.message == f"{source} line {line}: a quote opens there that is not closed {where}"
    assert "close it" in str(caught.value.hint)


def test_captions_of_several_lines_and_sloppy_quotes_are_read(tmp_path: Path) -> None:
    text = (
        'a.jpg,"a dog,\n\nand ""its"" bone\n"\n\n'
        'b.jpg,"A cat" sleeps\nc.jpg,the 6" ruler\nd.jpg,"a" b,\ne.jpg,"It" is,"two\nlines"\n'
    )
    index = read_pairs([write(tmp_path, text)])
    assert [pair.captions for pair in index] == [
        ['a dog,\n\nand "its" bone\n'],
        ["A cat sleeps"],
        ['the 6" ruler'],
    ]
    assert [reason.rpartition("pairs.csv ")[2].partition(":")[0] for reason in index.skipped_reasons] == [
        "line 9",
        "line 10",
    ]


def test_a_caption_may_have_many_lines_but_not_more_than_the_bound(tmp_path: Path) -> None:
    longest = "a dog" + "\n" * (MAX_CELL_LINES - 1)
    assert read_pairs([write(tmp_path, f'a.jpg,"{longest}"\n')])[0].captions == [longest]
    with pytest.raises(DataError, match="line 2: a quote opens"):
        read_pairs([write(tmp_path, f'a.jpg,"{longest}\n"\n')])


def test_a_huge_caption_is_cut_like_that_of_any_other_format(tmp_path: Path) -> None:
    (caption,) = read_pairs([write(tmp_path, "a.jpg," + "a dog " * 1_700_000 + "\n")])[0].captions
    assert len(caption) == MAX_CAPTION and caption.startswith("a dog a dog")


def test_a_cell_beyond_the_bound_is_one_line_of_error(tmp_path: Path) -> None:
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(
            DataError, match=r"pairs\.csv line 3: a quote opens there that is not closed before line 12$"
        ):
            read_pairs([write(tmp_path, 'a.jpg,a dog\nb.jpg,"a cat\n' + "0123456789\n" * 20 + '"\n')])
    finally:
        csv.field_size_limit(before)
    assert before >= MAX_ROW_BYTES


def test_old_line_ends_are_malformed(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_bytes(b"image,caption\ra.jpg,a dog\r")
    with pytest.raises(DataError, match="its lines end in CR alone"):
        read_pairs([str(tmp_path / "old.csv")])
