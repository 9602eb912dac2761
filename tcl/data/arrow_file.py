"""The Arrow file that holds a large index: written as a stream, then mapped into memory and shared by all processes.

An index that was built is kept in the cache folder under a key that changes when its sources do.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tcl.errors import DataError
from tcl.files.atomic import shared_file, try_writing
from tcl.files.cache import cache_folder, make_room, touch

_SUMMARY = b"tcl"


class IndexFile:
    """An open index.

    Args:
        path: of the file.
        table: its rows, mapped into memory.
        summary: what was stored beside them.
    """

    def __init__(self, path: Path, table: pa.Table, summary: dict[str, Any]) -> None:
        self.path = path
        self.table = table
        self.summary = summary

    @classmethod
    def open(cls, path: Path) -> IndexFile:
        """Map a file.

        Raises:
            OSError: it is not there or cannot be read.
            ValueError: it is damaged.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            last, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches - 1)]
            summary = json.loads(metadata[_SUMMARY])
            table = pa.Table.from_batches(batches, reader.schema)
            table.validate()
            if table.num_rows != summary["rows"] or last.num_rows:
                raise ValueError(f"{table.num_rows} rows of {summary['rows']}")
        except (pa.ArrowException, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return cls(path, table, summary)


def cached_path(key: str) -> Path:
    """Where the index of that key is kept."""
    return cache_folder() / "index" / f"{key}.arrow"


def open_cached(key: str) -> IndexFile | None:
    """The index of that key; None when there is none that can be read."""
    path = cached_path(key)
    try:
        file = IndexFile.open(path)
    except (OSError, ValueError):
        return None
    touch(path)
    return file


def write_index(
    key: str | None, schema: pa.Schema, batches: Iterable[pa.RecordBatch], summary: Callable[[], dict[str, Any]]
) -> IndexFile:
    """Write an index as its batches come, and open it.

    Args:
        key: for the cache; without one, or where the cache folder cannot be written to, the file is temporary and goes
            when this process ends.
        schema: of all batches.
        batches: the rows.
        summary: asked when all batches were written, for what is stored beside them.

    Raises:
        DataError: there is no room for it.
    """
    target = cached_path(key) if key else None
    if target and _is_writable(target.parent):
        try:
            with shared_file(target) as temporary:
                _write(temporary, schema, batches, summary)
            make_room(target)
            return IndexFile.open(target)
        except OSError as error:
            raise _no_room(target.parent, error) from error
    handle, name = tempfile.mkstemp(".arrow", "tcl-index-")
    os.close(handle)
    path = Path(name)
    try:
        _write(path, schema, batches, summary)
        file = IndexFile.open(path)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _no_room(path.parent, error) from error
        raise
    weakref.finalize(file, _remove, path, os.getpid())
    return file


def _is_writable(folder: Path) -> bool:
    try:
        try_writing(folder)
    except OSError:
        return False
    return True


def _write(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], summary: Callable[[], dict[str, Any]]
) -> None:
    with path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
            # The summary is known only now, so it goes with an empty last batch.
            end = pa.RecordBatch.from_pylist([], schema)
            writer.write_batch(end, custom_metadata={_SUMMARY: json.dumps(summary()).encode()})
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a worker that was forked
        path.unlink(missing_ok=True)


def _no_room(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the index of the data to {folder}: {error.strerror or error}",
        hint="free some space there, lower TCL_CACHE_GB, or name another cache folder: TCL_CACHE=/large/disk/tcl",
    )
