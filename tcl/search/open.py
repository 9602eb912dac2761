"""What `--index` names: vectors, an index of them, or a table."""

from __future__ import annotations

from pathlib import Path

from tcl.errors import UsageError
from tcl.search.exact import Collection, ExactCollection
from tcl.search.faiss import SUFFIX, FaissCollection, default_index, report_file
from tcl.search.lancedb import PREFIX, LanceCollection
from tcl.vectors.reader import VectorFile

EXACT_ROWS = 3_000_000
"""Up to here, comparing every row takes a fraction of a second; above, an index that lies beside is used."""


def open_collection(place: str, ann: bool | None = None, centre: bool = False) -> Collection:
    """Open what is to be searched.

    Args:
        place: vectors (`.npy`, `.parquet`, a folder of parts), an index of them (`.faiss`), or `lancedb:DIR/TABLE`.
        ann: search vectors by the index beside them (True) or exactly (False); None decides by their number.
        centre: see `ExactCollection`.

    Raises:
        UsageError: nothing is there, it does not fit together, or the options contradict each other.
        DataError: damaged.
        MissingExtraError: it needs a package that is not installed.
    """
    if place.startswith(PREFIX) or place.endswith(SUFFIX):
        if centre or ann is False:
            option = "--centre" if centre else "--exact"
            raise UsageError(f"{option} compares every vector, {place} is an index", hint="give the vectors themselves")
        return LanceCollection(place) if place.startswith(PREFIX) else FaissCollection(Path(place))
    vectors = VectorFile.open(Path(place))
    index = default_index(vectors.path)
    if ann is None:
        ann = len(vectors) > EXACT_ROWS and report_file(index).is_file() and not centre
    if not ann:
        return ExactCollection(vectors, centre)
    if centre:
        raise UsageError("--centre compares every vector, --ann does not", hint="leave out one of them")
    return FaissCollection(index, vectors)
