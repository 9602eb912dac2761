"""Vectors in a LanceDB table: an embedded database, a folder without a server."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, MissingExtraError, TclError, UsageError, reason_of
from tcl.files.names import from_unicode, to_unicode
from tcl.search.exact import Hit, check_width
from tcl.vectors.reader import VectorFile, check_hash

PREFIX = "lancedb:"
OTHER_TABLE = "choose another table"
_BLOCK_ROWS = 8192
_OF_A_ROW = ("id", "text", "path")
_COLUMNS = ("id", "vector", "text", "path", "model_hash", "kind", "root")


def parse_place(place: str) -> tuple[str, str]:
    """Folder and table of `lancedb:DIR/TABLE`.

    Raises:
        UsageError: it names none.
    """
    folder, _, table = place.removeprefix(PREFIX).rpartition("/")
    if not place.startswith(PREFIX) or not folder or not table:
        raise UsageError(f"{place}: no table", hint="write lancedb:DIR/TABLE, for example lancedb:db/photos")
    return folder, table


def write_table(
    vectors: VectorFile, place: str, progress: Callable[[int], object] = lambda rows: None
) -> tuple[int, int]:
    """Write vectors to a table; a row whose id is there already takes its place, and every other row stays.

    Args:
        vectors: float32 in the table, whatever they are on disk.
        place: `lancedb:DIR/TABLE`; made when it is not there.
        progress: called with the number of rows written since the last call.

    Returns:
        rows written, and rows in the table afterwards.

    Raises:
        MissingExtraError: LanceDB is not installed.
        UsageError: the table holds vectors of another model, kind or folder of images, or is no table of `tcl index`.
        DataError: an id stands for two rows, or a value is not finite.
        TclError: the database failed; rows written before stay, and the same command completes them.
    """
    database, name = _connect(place, make=True)
    schema = _schema(vectors.dim)
    try:
        table = database.open_table(name) if name in _tables(database) else None
        if table is not None:
            _check_table(place, table, vectors.dim)
            _check_about(place, _about(table), _constants(vectors))
        written, seen = 0, set[bytes]()
        for rows in _batches(vectors, schema):
            _check_ids(vectors, rows, seen)
            if table is None:
                table = database.create_table(name, rows)
            else:
                table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
            written += rows.num_rows
            progress(rows.num_rows)
        if table is None:
            raise DataError(f"{vectors.path}: holds no vectors", hint="embed something first")
        _clean(table)
        return written, int(table.count_rows())
    except (RuntimeError, ValueError, OSError) as error:
        raise _failed(place, error) from error


class LanceCollection:
    """Search in a table that `write_table` made.

    Args:
        place: `lancedb:DIR/TABLE`.

    Raises:
        MissingExtraError: LanceDB is not installed.
        UsageError: no such table, or not one of `tcl index`.
    """

    def __init__(self, place: str) -> None:
        database, name = _connect(place, make=False)
        self.name = place
        try:
            if name not in _tables(database):
                known = ", ".join(sorted(_tables(database))) or "none"
                raise UsageError(f"{place}: no such table", hint=f"tables there: {known}; `tcl index --to` makes one")
            self._table = database.open_table(name)
            _check_table(place, self._table)
            about = _about(self._table)
        except (RuntimeError, ValueError, OSError) as error:
            raise _failed(place, error) from error
        self.dim = int(self._table.schema.field("vector").type.list_size)
        self.kind, self.root = str(about["kind"]), Path(from_unicode(str(about["root"])))
        self._model_hash = str(about["model_hash"])
        self.files: list[Path] = []  # a folder, whose files have names that nobody would choose

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def check_model(self, model_hash: str) -> None:
        """See `tcl.search.exact.Collection`."""
        check_hash(self.name, self._model_hash, model_hash)

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        """The nearest rows to each of the L2-normalised queries [Q, E]; exact unless the table was given an index."""
        check_width(self, queries)
        try:
            return [self._search_one(query, top) for query in queries]
        except (RuntimeError, ValueError, OSError) as error:
            raise _failed(self.name, error) from error

    def tokens(self, hits: Sequence[Hit]) -> None:
        """A table holds none."""
        return None

    def _search_one(self, query: NDArray[np.float32], top: int) -> list[Hit]:
        wanted = self._table.search(query, vector_column_name="vector").distance_type("cosine").limit(top)
        rows = wanted.select([*_OF_A_ROW, "_distance"]).to_list()
        hits = []
        for row in rows:
            row_id, text, path = (row[name] and from_unicode(row[name]) for name in _OF_A_ROW)
            hits.append(Hit(None, row_id, 1 - float(row["_distance"]), text, path))
        return sorted(hits, key=lambda hit: -hit.score)


def _schema(dim: int) -> Any:
    import pyarrow as pa

    texts = [pa.field(name, pa.string()) for name in _COLUMNS if name != "vector"]
    return pa.schema([texts[0], pa.field("vector", pa.list_(pa.float32(), dim)), *texts[1:]])


def _batches(vectors: VectorFile, schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    constant = _constants(vectors)
    for start, block in vectors.floats(_BLOCK_ROWS):
        records = [vectors.record(row) for row in range(start, start + len(block))]
        columns: dict[str, Any] = {name: [_spelt(record.get(name)) for record in records] for name in _OF_A_ROW}
        columns |= {name: [value] * len(block) for name, value in constant.items()}
        lists = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])
        texts = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        yield pa.table([lists if name == "vector" else texts[name] for name in schema.names], schema=schema)


def _spelt(text: str | None) -> str | None:
    return None if text is None else to_unicode(text)


def _clean(table: Any) -> None:
    """Each batch left a version of the table behind, with the rows that it replaced."""
    with warnings.catch_warnings():
        # Whoever reads an old version just now has to begin again; docs/search.md says so.
        warnings.filterwarnings("ignore", "optimize.cleanup_older_than=0", UserWarning)
        table.optimize(cleanup_older_than=timedelta(0))


def _constants(vectors: VectorFile) -> dict[str, str]:
    """What all rows of a table have in common."""
    return {
        "model_hash": str(vectors.meta.get("model_hash")),
        "kind": vectors.kind,
        "root": to_unicode(str(vectors.meta.get("root", ""))),
    }


def _check_about(place: str, about: dict[str, Any], own: dict[str, str]) -> None:
    """A table says these things of all its rows at once."""
    check_hash(place, about["model_hash"], own["model_hash"])
    if about["kind"] != own["kind"]:
        raise UsageError(f"{place}: holds vectors of {about['kind']}s, these are of {own['kind']}s", hint=OTHER_TABLE)
    if about["root"] != own["root"]:
        raise UsageError(
            f"{place}: its paths start from {about['root']!r}, these from {own['root']!r}", hint=OTHER_TABLE
        )


def _check_ids(vectors: VectorFile, rows: Any, seen: set[bytes]) -> None:
    """An upsert of two rows with one id would keep one of them, and which is left to chance."""
    import hashlib

    for row_id in rows["id"].to_pylist():
        key = hashlib.blake2b(row_id.encode(), digest_size=12).digest()
        if key in seen:
            raise DataError(f"{vectors.path}: two rows have the id {row_id!r}", hint="give every input its own id")
        seen.add(key)


def _about(table: Any) -> dict[str, Any]:
    """What all rows have in common, from the first one."""
    rows = table.search().select(["model_hash", "kind", "root"]).limit(1).to_list()
    if not rows:
        raise UsageError(f"{table.name}: an empty table", hint="write vectors to it with `tcl index VECTORS --to`")
    return dict(rows[0])


def _check_table(place: str, table: Any, dim: int | None = None) -> None:
    names = set(table.schema.names)
    if not names.issuperset(_COLUMNS):
        missing = ", ".join(name for name in _COLUMNS if name not in names)
        raise UsageError(f"{place}: not a table of `tcl index`: no column {missing}", hint=OTHER_TABLE)
    width = table.schema.field("vector").type.list_size
    if dim is not None and width != dim:
        raise UsageError(f"{place}: holds vectors of {width} entries, these have {dim}", hint=OTHER_TABLE)


def _connect(place: str, make: bool) -> tuple[Any, str]:
    folder, name = parse_place(place)
    if find_spec("lancedb") is None:
        raise MissingExtraError("lancedb", "lancedb")
    if not make and "://" not in folder and not Path(folder).is_dir():
        raise UsageError(f"{place}: no folder {folder}", hint=f"make it with `tcl index VECTORS --to {place}`")
    import lancedb

    try:
        return lancedb.connect(folder), name
    except (RuntimeError, ValueError, OSError) as error:
        raise _failed(place, error) from error


def _tables(database: Any) -> list[str]:
    return list(database.list_tables().tables)


def _failed(place: str, error: Exception) -> TclError:
    return TclError(
        f"{place}: LanceDB: {reason_of(error)}", hint="what was written stays; the same command completes it"
    )
