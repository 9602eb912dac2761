"""Search is exact whatever the vectors are stored as, and hits are re-ranked by their match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tcl.errors import DataError, UsageError
from tcl.search import exact as search
from tcl.search.exact import ExactCollection, Hit, rerank
from tcl.search.open import open_collection
from tcl.vectors.reader import VectorFile
from tcl.vectors.writer import VectorWriter
from tests.vectors.vector_files import HASH, unit, write, write_folder

ROWS = 50


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equals_sorting_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: str, chunk: int
) -> None:
    monkeypatch.setattr(search, "ROWS_AT_ONCE", chunk)
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 2)
    queries = unit(3, seed=1)
    file = write(tmp_path / f"v{suffix}", unit(ROWS), dtype)
    stored = file.take(range(ROWS))
    for query, hits in zip(queries, ExactCollection(file).search(queries, 10), strict=True):
        scores = stored @ query
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:10], atol=1e-6)
        np.testing.assert_allclose([scores[hit.row] for hit in hits], [hit.score for hit in hits], atol=1e-6)
        assert len({hit.row for hit in hits}) == 10
        assert hits[0].id == f"id-{hits[0].row}" and hits[0].text == f"text id-{hits[0].row}"


def test_many_queries_equal_each_by_itself(tmp_path: Path) -> None:
    collection, queries = ExactCollection(write(tmp_path / "v.npy", unit(ROWS))), unit(9, seed=1)
    for together, query in zip(collection.search(queries, 5), queries, strict=True):
        assert [hit.row for hit in together] == [hit.row for hit in collection.search(query[None], 5)[0]]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ties_come_in_row_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(search, "ROWS_AT_ONCE", 3)
    same = np.repeat(np.eye(1, 8, dtype=np.float32), 8, axis=0)
    hits = ExactCollection(write(tmp_path / "v.npy", same, dtype)).search(same[:1], 5)[0]
    assert [hit.row for hit in hits] == [0, 1, 2, 3, 4]


def test_a_folder_of_parts_equals_one_file(tmp_path: Path) -> None:
    vectors, queries = unit(ROWS), unit(3, seed=1)
    one = ExactCollection(write(tmp_path / "v.npy", vectors)).search(queries, 10)
    assert ExactCollection(write_folder(tmp_path / "parts", vectors, 13)).search(queries, 10) == one
    assert open_collection(str(tmp_path / "parts")).search(queries, 10) == one


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_each_part_of_int8_vectors_has_a_scale_of_its_own(tmp_path: Path, suffix: str) -> None:
    """Every reader multiplies by that of the part, here with columns ten times as large in some parts."""
    vectors, queries = unit(ROWS), unit(3, seed=1)
    vectors[26:, :4] /= 10
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    file = write_folder(tmp_path / "parts", vectors, 13, suffix, "int8")
    scales = [json.loads(path.read_text())["scale"] for path in sorted((tmp_path / "parts").glob("part-*.meta.json"))]
    stored = [part.take(range(len(part))) for part in file.parts]
    assert scales[0][0] > 3 * scales[2][0] and all(part.dtype == np.int8 for part in stored)
    parts = [part * np.array(scale, np.float32) for part, scale in zip(stored, scales, strict=True)]
    expected = np.concatenate(parts)
    assert np.abs(expected - vectors).max() < 0.005
    for query, hits in zip(queries, ExactCollection(file).search(queries, 10), strict=True):
        scores = expected @ query
        assert [hit.row for hit in hits] == np.argsort(-scores)[:10].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:10], atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([block for _, block in file.floats(7)]), expected)
    np.testing.assert_array_equal(file.take([49, 0, 20]), expected[[49, 0, 20]])
    np.testing.assert_allclose(file.mean, expected.mean(axis=0), atol=1e-6)


def test_fewer_rows_than_asked_for(tmp_path: Path) -> None:
    assert len(ExactCollection(write(tmp_path / "v.npy", unit(3))).search(unit(1), 10)[0]) == 3
    assert ExactCollection(write(tmp_path / "w.npy", unit(0))).search(unit(1), 10) == [[]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_centred(tmp_path: Path, dtype: str) -> None:
    """Against the definition: subtract the mean, normalise, compare."""
    offset = np.full(8, 0.15, np.float32)
    vectors, queries = unit(ROWS) * 0.4 + offset, unit(2, seed=1) + offset
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    file = write(tmp_path / "v.npy", vectors, dtype)
    stored = file.take(range(ROWS))
    mean = stored.mean(axis=0)
    left, wanted = stored - mean, queries - mean
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for query, hits in zip(wanted, ExactCollection(file, centre=True).search(queries, 5), strict=True):
        scores = left @ query
        # float16 vectors have length 1 up to a few parts in ten thousand.
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:5], atol=2e-3)
        np.testing.assert_allclose([scores[hit.row] for hit in hits], [hit.score for hit in hits], atol=2e-3)


def test_vectors_of_another_model(tmp_path: Path) -> None:
    collection = ExactCollection(write(tmp_path / "v.npy", unit(3)))
    collection.check_model(HASH)
    with pytest.raises(UsageError, match="vectors of another model"):
        collection.check_model("b" * 64)
    with pytest.raises(DataError, match="vectors of 8 entries"):
        collection.search(np.zeros((1, 4), np.float32), 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_that_are_not_finite(tmp_path: Path, dtype: str) -> None:
    for value in (np.nan, -np.nan, np.inf):
        vectors = unit(5)
        vectors[3, 2] = value
        file = write(tmp_path / f"{value}.npy", vectors, dtype)
        for centre in (False, True):
            with pytest.raises(DataError, match="row 3 is not finite"):
                ExactCollection(file, centre).search(unit(1), 1)


def test_hits_as_json(tmp_path: Path) -> None:
    hit = ExactCollection(write(tmp_path / "v.npy", unit(2))).search(unit(1), 1)[0][0]
    assert set(json.loads(json.dumps(hit.to_json()))) == {"row", "id", "score", "text"}


def test_rerank_orders_by_the_match_logit() -> None:
    hits = [Hit(row, str(row), 1.0 - row) for row in range(3)]
    logits = np.array([[5.0, 1.0], [0.0, 3.0], [1.0, 2.0]], np.float32)
    ranked = rerank(hits, logits)
    assert [hit.row for hit in ranked] == [1, 2, 0]
    expected = torch.tensor(logits).softmax(-1)[[1, 2, 0], 1]
    np.testing.assert_allclose([hit.match or 0 for hit in ranked], expected, rtol=1e-6)
    assert rerank([], np.empty((0, 2), np.float32)) == []


def test_options_that_contradict(tmp_path: Path) -> None:
    write(tmp_path / "v.npy", unit(3))
    with pytest.raises(UsageError, match="--centre compares every vector"):
        open_collection(str(tmp_path / "v.npy"), ann=True, centre=True)
    with pytest.raises(UsageError, match="--exact compares every vector"):
        open_collection("lancedb:a/b", ann=False)


def test_float16_vectors_longer_than_one(tmp_path: Path) -> None:
    vectors = unit(20) * 3
    file = write(tmp_path / "v.npy", vectors, "float16")
    best = ExactCollection(file).search(unit(1, seed=1), 1)[0][0]
    assert best.score == pytest.approx(float((vectors @ unit(1, seed=1)[0]).max()), rel=1e-3)


def test_a_path_that_is_the_id_is_said_once(tmp_path: Path) -> None:
    for name in ("v.npy", "w.parquet"):
        writer = VectorWriter(tmp_path / name, 8, "float32", "path")
        writer.append(["a.jpg", "b"], ["a.jpg", "b.jpg"], unit(2))
        writer.finish({"kind": "image", "count": 2, "model_hash": HASH, "dim": 8})
        hits = ExactCollection(VectorFile.open(tmp_path / name)).search(unit(2)[:1], 2)[0]
        assert {hit.id: hit.path for hit in hits} == {"a.jpg": None, "b": "b.jpg"}


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_files_that_belong_to_vectors(tmp_path: Path, suffix: str) -> None:
    one = write(tmp_path / f"v{suffix}", unit(3)).belongings
    assert {path.name for path in one} == {path.name for path in tmp_path.iterdir()}
    folder = write_folder(tmp_path / "parts", unit(5), 2, suffix)
    assert set(folder.belongings) == set((tmp_path / "parts").iterdir())
