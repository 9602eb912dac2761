"""The cells of a CSV or TSV file row by row, such that an open quote cannot swallow rows.

Python's reader takes all that follows a quote for one cell, to the next quote or the end of the file, and says nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain

from tcl.data.tables.json_stream import MAX_ROW_BYTES
from tcl.errors import DataError

MAX_CELL_LINES = 50
"""Lines that one row may take; more are an open quote, rather than a caption."""

# Of the whole process, and 131,072 characters by default. Long captions are cut later, like those of any other format;
# that a quote is open shows from the lines. A higher limit, which somebody else may have set, stays.
csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))


def separator(line: str, usual: str) -> str:
    """What stands between the cells of a table.

    Args:
        line: its first one. Excel may say it there, as in `sep=;`.
        usual: what counts if the line has it; else it is that of `,`, `;` and tab that it has most of.
    """
    if line.startswith("sep=") and len(line.rstrip("\r\n")) == 5:
        return line[4]
    return usual if usual in line else max((usual, *",;\t"), key=line.count)


def table_lines(lines: Iterator[tuple[int, str]], delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table, each with the number of its first line; an empty line is a row without cells.

    Text behind a closed quote belongs to its cell, as in `"A dog" runs`, which people write.

    Args:
        lines: numbered, each with its line end.
        delimiter: between cells.
        name: of the file, for errors.

    Raises:
        DataError: a quote is not closed, or a line is malformed.
    """
    row: list[str] = []  # lines of the row that is being read
    first, ended = 0, False

    def taken() -> Iterator[str]:
        nonlocal first, ended
        for number, line in lines:
            if not row:
                first = number
            elif len(row) == MAX_CELL_LINES:
                raise _open_quote(name, first, row, delimiter, f"within {MAX_CELL_LINES} lines")
            row.append(line)
            yield line
        ended = True

    reader = csv.reader(taken(), delimiter=delimiter, strict=True)
    while True:
        row.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if ended:
                raise _open_quote(name, first, row, delimiter, "before the end of the file") from error
            if len(row) > 1:  # the next quote of the file closes it, in the middle of a cell
                raise _open_quote(name, first, row[:-1], delimiter, f"before line {first + len(row) - 1}") from error
            try:
                cells = next(csv.reader(chain(tuple(row), taken()), delimiter=delimiter))
            except csv.Error as error:
                raise DataError(f"{name} line {first}: malformed CSV: {error}", hint="repair that line") from error
            if ended:
                raise _open_quote(name, first, row, delimiter, "before the end of the file") from None
        yield first, cells


def _open_quote(name: str, first: int, row: Sequence[str], delimiter: str, where: str) -> DataError:
    """The error of a row whose lines so far end inside quotes.

    They open in the line that begins the last cell.
    """
    cells = []
    with suppress(csv.Error):  # the last cell is larger than any may be
        for end in range(1, len(row) + 1):
            cells.append(len(next(csv.reader(row[:end], delimiter=delimiter))))
    return DataError(
        f"{name} line {first + cells.index(max(cells))}: a quote opens there that is not closed {where}",
        hint='close it; inside quotes, a quote is written twice: "a ""big"" dog"',
    )
