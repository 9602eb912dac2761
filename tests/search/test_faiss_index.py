"""An index finds what exact search finds, says how much of it, and is refused when its vectors have changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tcl.errors import DataError, MissingExtraError, UsageError
from tcl.search import faiss as faiss_index
from tcl.search import faiss_build
from tcl.search.exact import ExactCollection
from tcl.search.faiss import FaissCollection, default_index, report_file
from tcl.search.faiss_build import build_index, choose_kind
from tcl.search.open import open_collection
from tcl.vectors.parts import ParquetPart
from tcl.vectors.reader import VectorFile
from tests.vectors.vector_files import HASH, unit, write, write_folder

pytest.importorskip("faiss")
ROWS = 300


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed vectors learned from few rows; FAISS says what it thinks of that on stderr."""
    monkeypatch.setattr(faiss_build, "_TRAINED_PER_CODE", ROWS)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("flat", "float32"), ("flat", "float16"), ("flat", "int8"), ("hnsw", "float32"), ("ivfpq", "float16")],
)
def test_finds_what_exact_search_finds(tmp_path: Path, few_are_enough: None, kind: str, dtype: str) -> None:
    vectors = write(tmp_path / "v.npy", unit(ROWS), dtype)
    done: list[int] = []
    report = build_index(vectors, tmp_path / "v.faiss", kind, done.append)
    assert sum(done) == ROWS and (report.kind, report.count, report.dim, report.queries) == (kind, ROWS, 8, 200)
    assert 0.9 <= report.recall_at_10 <= 1
    queries = unit(5, seed=1)
    exact = ExactCollection(vectors).search(queries, 10)
    found = FaissCollection(tmp_path / "v.faiss").search(queries, 10)
    shared = sum(len({hit.row for hit in a} & {hit.row for hit in b}) for a, b in zip(exact, found, strict=True))
    assert shared >= 45
    for a, b in zip(exact, found, strict=True):
        scores = {hit.row: hit.score for hit in a}
        assert all(scores.get(hit.row, hit.score) == pytest.approx(hit.score, abs=1e-6) for hit in b)
        assert b[0].text == f"text id-{b[0].row}" and [h.score for h in b] == sorted((h.score for h in b), reverse=True)


def test_the_kind_suits_the_size() -> None:
    assert [choose_kind(count) for count in (10, 100_000, 10_000_000)] == ["flat", "hnsw", "ivfpq"]


def test_too_few_rows_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="300 rows are too few for ivfpq"):
        build_index(write(tmp_path / "v.npy", unit(ROWS)), tmp_path / "v.faiss", "ivfpq")


def test_no_vectors_and_bad_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no vectors"):
        build_index(write(tmp_path / "v.npy", unit(0)), tmp_path / "v.faiss")
    vectors = unit(5)
    vectors[3] = np.nan
    with pytest.raises(DataError, match="row 3 is not finite"):
        build_index(write(tmp_path / "w.npy", vectors), tmp_path / "w.faiss")
    assert not list(tmp_path.glob("*.faiss*"))


def test_parts(tmp_path: Path) -> None:
    vectors = write_folder(tmp_path / "parts", unit(ROWS), 100)
    index = default_index(tmp_path / "parts")
    assert index == tmp_path / "parts.faiss"
    build_index(vectors, index)
    queries = unit(2, seed=1)
    exact = ExactCollection(vectors).search(queries, 3)
    for collection in (open_collection(str(tmp_path / "parts"), ann=True), FaissCollection(index)):
        found = collection.search(queries, 3)
        assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in exact]


def test_used_by_itself_above_a_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "v.npy")
    vectors = write(tmp_path / "v.npy", unit(30))
    monkeypatch.setattr("tcl.search.open.EXACT_ROWS", 20)
    assert isinstance(open_collection(place), ExactCollection)
    build_index(vectors, tmp_path / "v.faiss")
    assert isinstance(open_collection(place), FaissCollection)
    assert isinstance(open_collection(place, ann=False), ExactCollection)
    assert isinstance(open_collection(place, centre=True), ExactCollection)
    monkeypatch.setattr("tcl.search.open.EXACT_ROWS", 30)
    assert isinstance(open_collection(place), ExactCollection)
    assert isinstance(open_collection(place, ann=True), FaissCollection)


def test_an_index_older_than_its_vectors(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    build_index(write(path, unit(30)), tmp_path / "v.faiss")
    os.utime(path, ns=(1, 1))
    assert len(FaissCollection(tmp_path / "v.faiss")) == 30  # touched, the same content
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert len(FaissCollection(tmp_path / "copy" / "v.faiss")) == 30
    write(path, unit(30, seed=1))
    with pytest.raises(UsageError, match="changed since") as caught:
        FaissCollection(tmp_path / "v.faiss")
    assert caught.value.hint == f"build it again: tcl index {path} --restart"
    write(path, unit(31))
    with pytest.raises(UsageError, match="changed since"):
        open_collection(str(path), ann=True)


def test_vectors_of_another_model(tmp_path: Path) -> None:
    build_index(write(tmp_path / "v.npy", unit(30)), tmp_path / "v.faiss")
    collection = FaissCollection(tmp_path / "v.faiss")
    collection.check_model(HASH)
    with pytest.raises(UsageError, match="another model"):
        collection.check_model("b" * 64)
    with pytest.raises(DataError, match="the query has 4"):
        collection.search(unit(1, 4), 1)
    meta = json.loads((tmp_path / "v.meta.json").read_text())
    (tmp_path / "v.meta.json").write_text(json.dumps(meta | {"model_hash": "b" * 64}))
    with pytest.raises(UsageError, match="changed since"):
        FaissCollection(tmp_path / "v.faiss")


def test_equal_vectors_are_as_good_as_one_another(tmp_path: Path) -> None:
    """A hundred copies of each of three: whichever ten an index finds."""
    report = build_index(write(tmp_path / "v.npy", np.tile(unit(3), (100, 1))), tmp_path / "v.faiss", "hnsw")
    assert report.recall_at_10 == 1


def test_each_row_group_is_read_once_per_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.vectors.writer.ROW_GROUP_BYTES", 10 * 8 * 4)
    vectors = write(tmp_path / "v.parquet", unit(ROWS))
    build_index(vectors, tmp_path / "v.faiss", "flat")
    collection = FaissCollection(tmp_path / "v.faiss")
    read: list[tuple[int, str]] = []
    original = ParquetPart._read

    def watched(part: ParquetPart, group: int, columns: list[str]) -> object:
        read.append((group, columns[0]))
        return original(part, group, columns)

    monkeypatch.setattr(ParquetPart, "_read", watched)
    found = collection.search(unit(40, seed=1), 10)
    assert len(found) == 40 and len(read) == len(set(read)) > 40
    read.clear()
    exact = ExactCollection(VectorFile.open(tmp_path / "v.parquet")).search(unit(40, seed=1), 10)
    assert len(read) <= 3 * ROWS / 10  # compared, looked at, named
    assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in exact]


def test_many_candidates_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = write(tmp_path / "v.npy", unit(ROWS))
    build_index(vectors, tmp_path / "v.faiss")
    expected = FaissCollection(tmp_path / "v.faiss").search(unit(7, seed=1), 10)
    monkeypatch.setattr(faiss_index, "TAKEN_AT_ONCE", 25)
    assert FaissCollection(tmp_path / "v.faiss").search(unit(7, seed=1), 10) == expected


def test_vectors_that_change_while_they_are_indexed(tmp_path: Path) -> None:
    vectors = write(tmp_path / "v.npy", unit(ROWS))
    with pytest.raises(DataError, match=r"v\.npy: changed while it was indexed"):
        build_index(vectors, tmp_path / "v.faiss", progress=lambda rows: write(tmp_path / "v.npy", unit(ROWS, seed=1)))
    assert not (tmp_path / "v.faiss").exists()
    build_index(vectors, tmp_path / "v.faiss")  # opened before they changed
    query = unit(ROWS, seed=1)[:1]
    assert FaissCollection(tmp_path / "v.faiss").search(query, 1)[0][0].score == pytest.approx(1, abs=1e-6)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    index = tmp_path / "v.faiss"
    with pytest.raises(UsageError, match=r"v\.faiss: no such file"):
        open_collection(str(index))
    vectors = write(tmp_path / "v.npy", unit(30))
    build_index(vectors, index)
    whole = index.read_bytes()
    for content in (whole[:50], b"", b"x" * 200):
        index.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            FaissCollection(index)
    index.write_bytes(whole)
    report_file(index).write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        FaissCollection(index)
    report_file(index).unlink()
    with pytest.raises(UsageError, match=r"v\.faiss\.json: no such file"):
        FaissCollection(index, VectorFile.open(tmp_path / "v.npy"))
    with pytest.raises(UsageError, match="cannot be written"):
        build_index(vectors, tmp_path / "no" / "v.faiss")


def test_without_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="faiss") as caught:
        build_index(write(tmp_path / "v.npy", unit(3)), tmp_path / "v.faiss")
    assert "[search]" in (caught.value.hint or "")
