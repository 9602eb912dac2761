"""Search by a FAISS index that lies beside the vectors it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, MissingExtraError, UsageError, reason_of
from tcl.files.hashes import file_sha256
from tcl.files.json_object import Malformed, read_object
from tcl.search.exact import ExactCollection, Found, Hit, check_width, make_hits
from tcl.vectors.reader import VectorFile

SUFFIX = ".faiss"
TAKEN_AT_ONCE = 16384  # rows that are read one by one


@dataclass(frozen=True)
class IndexReport:
    """What was built; stored beside the index.

    Attributes:
        kind: `flat`, `hnsw` or `ivfpq`.
        vectors: name of the vectors, relative to the index.
        files: size, time of change and SHA-256 of each file of vectors.
        model_hash: of the model that made them.
        count: rows.
        dim: width of a vector.
        effort: cells or nodes that a search visits (`nprobe`, `efSearch`); 0 for `flat`.
        refine: candidates per wanted hit that are compared exactly.
        recall_at_10: share of the exact 10 nearest that are found, measured on `queries` rows as queries.
        queries: rows that were taken as queries.
    """

    kind: str
    vectors: str
    files: dict[str, dict[str, Any]]
    model_hash: str
    count: int
    dim: int
    effort: int
    refine: int
    recall_at_10: float
    queries: int


LONGEST_NAME = 1000  # characters of a path
REPORT = {
    "kind": str,
    "vectors": str,
    "files": {"*": {"bytes": int, "changed": int, "sha256": str}},
    "model_hash": str,
    "count": int,
    "dim": int,
    "effort": int,
    "refine": int,
    "recall_at_10": float,
    "queries": int,
}


def report_file(index: Path) -> Path:
    """The sidecar of an index: `vecs.faiss.json`."""
    return index.with_name(index.name + ".json")


def default_index(vectors: Path) -> Path:
    """Where the index of some vectors is looked for: `vecs.faiss` beside `vecs.npy`."""
    return vectors.with_suffix(SUFFIX) if vectors.suffix else vectors.with_name(vectors.name + SUFFIX)


class FaissCollection:
    """Search by an index; what it finds is compared exactly, so scores are those of exact search.

    Args:
        path: of the index.
        vectors: what it was made of; None for the vectors that its sidecar names.

    Raises:
        MissingExtraError: FAISS is not installed.
        UsageError: no such index, or the vectors have changed since it was built.
        DataError: damaged.
    """

    def __init__(self, path: Path, vectors: VectorFile | None = None) -> None:
        self.report = read_report(path)
        faiss = load_faiss()
        self.vectors = vectors or VectorFile.open(path.parent / self.report.vectors)
        check_fresh(path, self.report, self.vectors)
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if self.report.kind == "ivfpq" else 0)
        except RuntimeError as error:
            raise DataError(f"{path}: damaged: {reason_of(error)}", hint=_rebuild(self.vectors)) from error
        if (self._index.ntotal, self._index.d) != (len(self.vectors), self.vectors.dim):
            raise DataError(f"{path}: damaged: {self._index.ntotal} rows", hint=_rebuild(self.vectors))
        exact = ExactCollection(self.vectors)
        self.name, self.kind, self.root, self.dim = str(path), exact.kind, exact.root, exact.dim
        self.files = [*exact.files, path, report_file(path)]
        self.check_model, self.tokens = exact.check_model, exact.tokens

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        """The nearest rows to each of the L2-normalised queries [Q, E], but for those that the index misses."""
        check_width(self, queries)
        rows = find_rows(self._index, self.report.kind, queries, top, self.report.effort, self.report.refine)
        return make_hits(self.vectors, compare_exactly(self.vectors, queries, rows, top))


def read_report(path: Path) -> IndexReport:
    """What the sidecar of an index says.

    Raises:
        UsageError: no index there.
        DataError: damaged.
    """
    for file in (path, report_file(path)):
        if not file.is_file():
            raise UsageError(f"{file}: no such file", hint="make it with `tcl index VECTORS`")
    try:
        values = read_object(report_file(path), REPORT)
        if not 0 < len(values["vectors"]) < LONGEST_NAME or "\0" in values["vectors"]:
            raise Malformed("vectors is not the name of a file")
        return IndexReport(**{name: values[name] for name in REPORT})
    except Malformed as error:
        raise DataError(f"{report_file(path)}: damaged: {error}", hint="run `tcl index` again") from error


def check_fresh(path: Path, report: IndexReport, vectors: VectorFile) -> None:
    """Refuse an index of other vectors than these; files that were copied or touched are compared by content.

    Raises:
        UsageError: the vectors have changed since.
    """
    same = {file.name for file in vectors.files} == set(report.files)
    same = same and report.model_hash == str(vectors.meta.get("model_hash")) and report.count == len(vectors)
    for file in vectors.files if same else []:
        own, status = report.files[file.name], file.stat()
        same = status.st_size == own["bytes"]
        if same and status.st_mtime_ns != own["changed"]:
            same = file_sha256(file) == own["sha256"]
        if not same:
            break
    if not same:
        raise UsageError(f"{path}: not of these vectors: {vectors.path} has changed since", hint=_rebuild(vectors))


def find_rows(
    index: Any, kind: str, queries: NDArray[np.float32], top: int, effort: int, refine: int
) -> NDArray[np.int64]:
    """Candidate rows of each query [Q, top * refine]; -1 where the index finds no more."""
    wanted = min(top * refine, index.ntotal)
    if kind == "hnsw":
        index.hnsw.efSearch = max(effort, wanted)
    elif kind == "ivfpq":
        index.nprobe = effort
    rows: NDArray[np.int64] = index.search(np.ascontiguousarray(queries, np.float32), wanted)[1]
    return rows


def compare_exactly(
    vectors: VectorFile, queries: NDArray[np.float32], rows: NDArray[np.int64], top: int
) -> list[Found]:
    """Candidates of each query ordered by their exact cosine; of equal scores the earlier row comes first.

    Args:
        vectors: of which many candidates are read at once, each row once, in the order of the file.
        queries: [Q, E].
        rows: candidates [Q, n]; -1 for none.
        top: rows per query that are kept.
    """
    found: list[Found] = []
    step = max(1, TAKEN_AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(queries), step):
        chunk = rows[start : start + step]
        every = np.unique(chunk[chunk >= 0])
        taken = vectors.take(every.tolist())
        for query, candidates in zip(queries[start : start + step], chunk, strict=True):
            own = np.unique(candidates[candidates >= 0])
            scores = taken[np.searchsorted(every, own)] @ query
            order = np.argsort(-scores, kind="stable")[:top]
            found.append((own[order], scores[order]))
    return found


def _rebuild(vectors: VectorFile) -> str:
    return f"build it again: tcl index {vectors.path} --restart"


def load_faiss() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec("faiss") is None:
        raise MissingExtraError("faiss", "search")
    import faiss

    return faiss
