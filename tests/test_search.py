"""Search is exact, notices damage, and re-ranks as the model matches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from tcl import search
from tcl.errors import DataError, UsageError
from tcl.models.tcl import TCL
from tcl.rerank import match_image, match_text
from tcl.search import Hit, VectorIndex, rerank
from tcl.vectors import VectorWriter

ROWS, DIM = 50, 8


def _unit(rows: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def write(path: Path, vectors: NDArray[np.float32], dtype: str = "float32") -> VectorIndex:
    """An index of `vectors` with the ids `id-0`, `id-1`, ..."""
    writer = VectorWriter(path, vectors.shape[1], dtype, "text")
    ids = [f"id-{row}" for row in range(len(vectors))]
    half = len(vectors) // 2
    writer.append(ids[:half], [f"text {name}" for name in ids[:half]], vectors[:half])
    writer.append(ids[half:], [f"text {name}" for name in ids[half:]], vectors[half:])
    writer.finish({"kind": "text", "count": len(vectors), "model_hash": "a" * 64})
    return VectorIndex.open(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equals_sorting_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: str, chunk: int
) -> None:
    monkeypatch.setattr(search, "CHUNK_ROWS", chunk)
    vectors, queries = _unit(ROWS), _unit(3, seed=1)
    index = write(tmp_path / f"v{suffix}", vectors, dtype)
    stored = vectors.astype(dtype).astype(np.float32)
    for query, hits in zip(queries, index.search(queries, 10), strict=True):
        scores = stored @ query
        expected = np.argsort(-scores, kind="stable")[:10]
        assert [hit.row for hit in hits] == expected.tolist()
        np.testing.assert_allclose([hit.score for hit in hits], scores[expected], atol=1e-6)
        assert hits[0].id == f"id-{expected[0]}" and hits[0].text == f"text id-{expected[0]}"


def test_ties_come_in_row_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CHUNK_ROWS", 3)
    same = np.repeat(np.eye(1, DIM, dtype=np.float32), 8, axis=0)
    hits = write(tmp_path / "v.npy", same).search(same[:1], 5)[0]
    assert [hit.row for hit in hits] == [0, 1, 2, 3, 4]


def test_fewer_rows_than_asked_for(tmp_path: Path) -> None:
    assert len(write(tmp_path / "v.npy", _unit(3)).search(_unit(1), 10)[0]) == 3


def test_vectors_of_another_model(tmp_path: Path) -> None:
    index = write(tmp_path / "v.npy", _unit(3))
    index.check_model("a" * 64)
    with pytest.raises(UsageError, match="vectors of another model"):
        index.check_model("b" * 64)
    with pytest.raises(DataError, match="vectors of 8 entries"):
        index.search(np.zeros((1, 4), np.float32), 1)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    vectors = _unit(5)
    vectors[3, 2] = np.nan
    with pytest.raises(DataError, match="row 3 is not finite"):
        write(tmp_path / "v.npy", vectors).search(_unit(1), 1)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    with pytest.raises(UsageError, match="no such file"):
        VectorIndex.open(path)
    with pytest.raises(UsageError, match="not a file of vectors"):
        VectorIndex.open(tmp_path / "v.txt")
    write(path, _unit(ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="damaged or cut off"):
        VectorIndex.open(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="damaged or cut off"):
        VectorIndex.open(path)
    path.write_bytes(whole)
    lines = (tmp_path / "v.ids.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "v.ids.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="do not belong together"):
        VectorIndex.open(path)
    (tmp_path / "v.ids.jsonl").write_text("nonsense\n" * ROWS)
    with pytest.raises(DataError, match="holds no id"):
        VectorIndex.open(path).search(_unit(1), 1)
    (tmp_path / "v.ids.jsonl").unlink()
    with pytest.raises(UsageError, match=r"v\.ids\.jsonl: is missing"):
        VectorIndex.open(path)
    (tmp_path / "v.meta.json").write_text("{")
    with pytest.raises(DataError, match="malformed JSON"):
        VectorIndex.open(path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "v.npy", _unit(2))
    np.save(tmp_path / "v.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        VectorIndex.open(tmp_path / "v.npy")


def test_other_parquet_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "v.parquet", _unit(2))
    parquet.write_table(parquet.read_table(tmp_path / "v.parquet").drop(["vector"]), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="not vectors"):
        VectorIndex.open(tmp_path / "v.parquet")


def test_hits_as_json(tmp_path: Path) -> None:
    hit = write(tmp_path / "v.npy", _unit(2)).search(_unit(1), 1)[0][0]
    assert set(json.loads(json.dumps(hit.to_json()))) == {"row", "id", "score", "text"}


def test_rerank_orders_by_the_match_logit() -> None:
    hits = [Hit(row, str(row), 1.0 - row) for row in range(3)]
    logits = np.array([[5.0, 1.0], [0.0, 3.0], [1.0, 2.0]], np.float32)
    ranked = rerank(hits, lambda candidates: logits)
    assert [hit.row for hit in ranked] == [1, 2, 0]
    expected = torch.tensor(logits).softmax(-1)[[1, 2, 0], 1]
    np.testing.assert_allclose([hit.match or 0 for hit in ranked], expected, rtol=1e-6)
    assert rerank([], lambda candidates: logits) == []


def test_match_equals_the_model_pair_by_pair(tiny_model: TCL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.rerank.CHUNK", 2)
    images = [f"scenes:val:0:{index}" for index in range(3)]
    texts = ["a small red circle", "a dog", "two yellow triangles below a purple ring"]
    with torch.inference_mode():
        expected = torch.stack(
            [
                tiny_model.match(
                    tiny_model.encode_image(tiny_model.processor.images([image])),
                    tiny_model.encode_text(*tiny_model.processor.texts([text])),
                )[0]
                for image in images
                for text in texts
            ]
        ).unflatten(0, (3, 3))
    for row, image in enumerate(images):
        np.testing.assert_allclose(match_image(tiny_model, image, texts), expected[row], atol=1e-5)
    for column, text in enumerate(texts):
        np.testing.assert_allclose(match_text(tiny_model, text, images), expected[:, column], atol=1e-5)
