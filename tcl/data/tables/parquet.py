"""Rows of Parquet files, read as a stream and without the bytes of images.

How large a step is in memory depends on the columns that are asked for alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tcl.errors import DataError, reason_of

_ROWS = 2048  # per step


def read_parquet(
    path: Path, name: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file, each with its place.

    Args:
        path: of the file.
        name: what errors call it, by default its path.
        columns: those that are read, or members of them (`image.path`); what is not there is passed over. By default
            all but those of bytes.

    Raises:
        DataError: the file is malformed.
        OSError: it cannot be read.
    """
    import pyarrow.parquet as pq

    with _complaints(name or str(path)), pq.ParquetFile(path) as file:
        if columns is None:
            columns = [field.name for field in file.schema_arrow if not _has_bytes(field.type)]
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        there = [column for column in columns if any(f"{leaf}.".startswith(f"{column}.") for leaf in leaves)]
        if not there:
            yield from ((f"row {number}", {}) for number in range(1, file.metadata.num_rows + 1))
            return
        batches = file.iter_batches(_ROWS, columns=there, use_threads=False)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"row {number}", row


def parquet_columns(path: Path, name: str | None = None) -> dict[str, str]:
    """Columns of a Parquet file with their types; `bytes` are binary ones, and those with a binary member.

    Raises:
        DataError: the file is malformed.
        OSError: it cannot be read.
    """
    import pyarrow.parquet as pq

    with _complaints(name or str(path)):
        return {field.name: "bytes" if _has_bytes(field.type) else str(field.type) for field in pq.read_schema(path)}


@contextmanager
def _complaints(name: str) -> Iterator[None]:
    """What Arrow says about a file, as an error that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # it cannot be read; Arrow's own complaints have no number
            raise
        raise DataError(
            f"{name}: malformed Parquet: {reason_of(error)}",
            hint="is it another format, or was it not written to its end?",
        ) from error


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
