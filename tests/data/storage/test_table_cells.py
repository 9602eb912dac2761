"""Images in a column of a Parquet file: any row at any time, every page read once by who goes through in order."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tcl.data.storage import parquet_cells as table_cells
from tcl.data.storage.open import member_reference
from tcl.data.storage.parquet_cells import cell_reference, open_image

ROWS = 3000


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Rows of 4 kB in groups of 1,000; row n begins with its number. The name of the column needs care."""
    cells = [b"%06d" % row + os.urandom(4096) for row in range(ROWS)]
    pq.write_table(
        pa.table({"a!b[0].c": cells, "other": cells}),
        tmp_path / "t.parquet",
        row_group_size=1000,
        use_dictionary=False,
        data_page_size=1 << 16,
        write_batch_size=16,
    )
    return str(tmp_path / "t.parquet")


@pytest.fixture
def cursors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first row of each cursor that was made."""
    made: list[int] = []

    class Counted(table_cells._Cursor):
        def __init__(self, path: str, column: str, group: int, first: int) -> None:
            made.append(first)
            super().__init__(path, column, group, first)

    monkeypatch.setattr(table_cells, "_Cursor", Counted)
    return made


def number(table: str, row: int) -> int:
    with open_image(cell_reference(table, "a!b[0].c", row)) as file:
        return int(file.read(6))


def test_any_row_at_any_time(table: str) -> None:
    for row in (0, 2999, 1500, 3, 999, 1000, 2, 2998, 0):
        assert number(table, row) == row


def test_almost_in_order_every_group_is_read_once(table: str, cursors: list[int]) -> None:
    draw = random.Random(0)
    for row in sorted(range(ROWS), key=lambda row: row + 16 * draw.random()):
        assert number(table, row) == row
    assert cursors == [0, 1000, 2000]


def test_threads_get_their_own_rows(table: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: number(table, row), range(ROWS))) == list(range(ROWS))


def test_two_places_at_once(table: str, cursors: list[int]) -> None:
    for row in range(500):
        assert (number(table, row), number(table, 2000 + row)) == (row, 2000 + row)
    assert cursors == [0, 2000]


def test_few_rows_are_in_memory(table: str) -> None:
    before = pa.total_allocated_bytes()
    peak = 0
    for row in range(1000):
        number(table, row)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 3.5e6 < 1000 * 4096


def test_a_file_that_is_written_anew(table: str) -> None:
    assert number(table, 0) == 0
    pq.write_table(pa.table({"a!b[0].c": [b"000007"]}), table)
    assert number(table, 0) == 7
    with pytest.raises(OSError, match="has no row 1"):
        number(table, 1)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "malformed Parquet"), (b"PAR1 and no more", "malformed Parquet"), (None, "No such")]
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match=reason) as caught:
        open_image(cell_reference(str(path), "image", 0))
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_an_error_of_its_rows(table: str) -> None:
    data = bytearray(Path(table).read_bytes())
    data[4:40] = bytes(36)  # the header of the first page
    Path(table).write_bytes(data)
    with pytest.raises(OSError, match=r"t\.parquet"):
        number(table, 0)
    assert number(table, 1500) == 1500


def test_cells_of_other_kinds(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2], "text": ["a", ""]}), tmp_path / "t.parquet")
    for column, row, reason in (("n", 0, "no image but int"), ("text", 0, "but str"), ("text", 1, "empty")):
        with pytest.raises(OSError, match=reason):
            open_image(cell_reference(str(tmp_path / "t.parquet"), column, row))
    with pytest.raises(OSError, match="no column absent"):
        open_image(cell_reference(str(tmp_path / "t.parquet"), "absent", 0))


def test_other_references_go_on(tmp_path: Path) -> None:
    (tmp_path / "a[0].jpg").write_bytes(b"0123456789")
    with open_image(str(tmp_path / "a[0].jpg")) as file:
        assert file.read() == b"0123456789"
    with open_image(member_reference(str(tmp_path / "a[0].jpg"), "x.parquet!y[3]", 2, 3)) as file:
        assert file.read() == b"234"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Named by a cell, or in the place of a table or a shard."""
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "pipe"}]}), tmp_path / "t.parquet")
    for name in ("pipe", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    for reference in (
        cell_reference(str(tmp_path / "t.parquet"), "image", 0),
        cell_reference(str(tmp_path / "pipe.parquet"), "image", 0),
        member_reference(str(tmp_path / "pipe"), "a.jpg", 0, 3),
    ):
        with pytest.raises(OSError, match="a pipe or device, not a file"):
            open_image(reference)
