"""Vectors in a real LanceDB table: written, replaced by id, searched, and kept apart by model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcl.errors import DataError, MissingExtraError, UsageError
from tcl.search import lancedb as lancedb_table
from tcl.search.exact import ExactCollection
from tcl.search.lancedb import LanceCollection, parse_place, write_table
from tcl.search.open import open_collection
from tests.vectors.vector_files import HASH, unit, write

lancedb = pytest.importorskip("lancedb")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_equals_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(lancedb_table, "_BLOCK_ROWS", 20)
    vectors, place = write(tmp_path / "v.npy", unit(50), dtype), f"lancedb:{tmp_path}/db/texts"
    done: list[int] = []
    assert write_table(vectors, place, done.append) == (50, 50) and sum(done) == 50
    queries = unit(3, seed=1)
    collection = open_collection(place)
    assert (len(collection), collection.dim, collection.kind) == (50, 8, "text")
    for a, b in zip(ExactCollection(vectors).search(queries, 5), collection.search(queries, 5), strict=True):
        assert [(hit.id, hit.text) for hit in a] == [(hit.id, hit.text) for hit in b]
        np.testing.assert_allclose([hit.score for hit in a], [hit.score for hit in b], atol=1e-3)
    assert collection.search(queries[:1], 80)[0][0].row is None
    assert "row" not in collection.search(queries[:1], 1)[0][0].to_json()


def test_the_table_is_plain_lancedb(tmp_path: Path) -> None:
    write_table(write(tmp_path / "v.npy", unit(5)), f"lancedb:{tmp_path}/db/texts")
    rows = lancedb.connect(str(tmp_path / "db")).open_table("texts").to_arrow().to_pylist()
    assert sorted(row["id"] for row in rows) == [f"id-{row}" for row in range(5)]
    assert {row["model_hash"] for row in rows} == {HASH}
    assert all(len(row["vector"]) == 8 and row["text"] == f"text {row['id']}" for row in rows)


def test_rows_are_replaced_by_id(tmp_path: Path) -> None:
    place = f"lancedb:{tmp_path}/db/texts"
    write_table(write(tmp_path / "v.npy", unit(50)), place)
    changed = unit(10, seed=5)
    assert write_table(write(tmp_path / "w.npy", changed, first=45), place) == (10, 55)
    collection = LanceCollection(place)
    hit = collection.search(changed[:1], 1)[0][0]
    assert hit.id == "id-45" and hit.score == pytest.approx(1, abs=1e-6)
    assert collection.search(unit(50)[44:45], 1)[0][0].id == "id-44"
    assert write_table(write(tmp_path / "w.npy", changed, first=45), place) == (10, 55)


def test_vectors_of_another_model(tmp_path: Path) -> None:
    place = f"lancedb:{tmp_path}/db/texts"
    write_table(write(tmp_path / "v.npy", unit(5)), place)
    LanceCollection(place).check_model(HASH)
    with pytest.raises(UsageError, match="vectors of another model"):
        LanceCollection(place).check_model("b" * 64)
    other = write(tmp_path / "w.npy", unit(5))
    other.meta["model_hash"] = "b" * 64
    with pytest.raises(UsageError, match="vectors of another model"):
        write_table(other, place)
    with pytest.raises(UsageError, match="holds vectors of 8 entries, these have 4"):
        write_table(write(tmp_path / "x.npy", unit(5, 4)), place)
    assert len(LanceCollection(place)) == 5


def test_vectors_of_another_kind_or_folder(tmp_path: Path) -> None:
    """A table says of all its rows at once what they are, and where their paths start."""
    place = f"lancedb:{tmp_path}/db/texts"
    write_table(write(tmp_path / "v.npy", unit(5)), place)
    for name, value, message in (("kind", "image", "holds vectors of texts"), ("root", "/b", "its paths start from")):
        other = write(tmp_path / "w.npy", unit(5, seed=1))
        other.meta[name] = value
        with pytest.raises(UsageError, match=message) as caught:
            write_table(other, place)
        assert caught.value.hint == "choose another table"
        (tmp_path / "w.npy").unlink()
    assert LanceCollection(place).search(unit(5), 1)[4][0].score == pytest.approx(1, abs=1e-6)


def test_old_versions_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lancedb_table, "_BLOCK_ROWS", 10)
    place = f"lancedb:{tmp_path}/db/texts"
    for seed in range(2):
        write_table(write(tmp_path / f"{seed}.npy", unit(30, seed=seed)), place)
    assert len(lancedb.connect(str(tmp_path / "db")).open_table("texts").list_versions()) == 1


def test_tables_that_are_not_ours_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        LanceCollection(f"lancedb:{tmp_path}/db/texts")
    database = lancedb.connect(str(tmp_path / "db"))
    database.create_table("other", [{"a": 1}])
    with pytest.raises(UsageError, match="no such table") as caught:
        LanceCollection(f"lancedb:{tmp_path}/db/texts")
    assert "other" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="not a table of `tcl index`"):
        LanceCollection(f"lancedb:{tmp_path}/db/other")
    with pytest.raises(UsageError, match="not a table of `tcl index`"):
        write_table(write(tmp_path / "v.npy", unit(5)), f"lancedb:{tmp_path}/db/other")


@pytest.mark.parametrize("place", ["lancedb:", "lancedb:db", "lancedb:db/", "db/table", "lancedb:/t"])
def test_places_that_name_no_table(place: str) -> None:
    with pytest.raises(UsageError, match="no table"):
        parse_place(place)


def test_places() -> None:
    assert parse_place("lancedb:db/texts") == ("db", "texts")
    assert parse_place("lancedb:s3://bucket/db/texts") == ("s3://bucket/db", "texts")


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    vectors = write(tmp_path / "v.npy", unit(5))
    (tmp_path / "v.ids.jsonl").write_text('{"id": "same"}\n' * 5)
    with pytest.raises(DataError, match="two rows have the id 'same'"):
        write_table(type(vectors).open(tmp_path / "v.npy"), f"lancedb:{tmp_path}/db/texts")


def test_no_vectors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no vectors"):
        write_table(write(tmp_path / "v.npy", unit(0)), f"lancedb:{tmp_path}/db/texts")


def test_without_lancedb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lancedb_table, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        LanceCollection("lancedb:db/texts")
    assert "[lancedb]" in (caught.value.hint or "")
