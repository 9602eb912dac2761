"""Vectors are read as they were written, and damage is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from tcl.errors import DataError, TclError, UsageError
from tcl.vectors.dtypes import dequantise
from tcl.vectors.reader import VectorFile
from tests.vectors.vector_files import HASH, unit, write, write_folder

ROWS = 50


@pytest.mark.parametrize("dim", [8, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_every_dtype(tmp_path: Path, suffix: str, dtype: str, dim: int) -> None:
    vectors, queries = unit(ROWS, dim), unit(3, dim, seed=1)
    file = write(tmp_path / f"v{suffix}", vectors, dtype)
    assert (len(file), file.dim, file.kind) == (ROWS, dim, "text")
    floats = np.concatenate([block for _, block in file.floats(7)])
    bound = {"float32": 0, "float16": 1e-3, "int8": 0.01, "binary": 1}[dtype]
    assert np.abs(floats - vectors).max() <= bound
    np.testing.assert_array_equal(file.take([30, 2, 30]), floats[[30, 2, 30]])
    np.testing.assert_allclose(file.mean, floats.mean(axis=0), atol=1e-6)
    for start, code, stored in file.blocks(11, 17):
        np.testing.assert_allclose(
            code.products(queries, stored), queries @ floats[start : start + len(stored)].T, atol=1e-6
        )
    if dtype == "binary":
        np.testing.assert_allclose(np.linalg.norm(floats, axis=1), 1, rtol=1e-6)
        assert ((floats > 0) == (vectors > 0)).all()
    assert file.record(49) == {"id": "id-49", "text": "text id-49", **({"path": None} if suffix == ".npy" else {})}


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_blocks_from_a_row_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("tcl.vectors.writer.ROW_GROUP_BYTES", 10 * 32)
    vectors = unit(ROWS)
    for file in (write(tmp_path / f"v{suffix}", vectors), write_folder(tmp_path / "parts", vectors, 13, suffix)):
        for first in (0, 9, 10, 26, 49, 50):
            blocks = list(file.floats(4, first))
            assert [start for start, _ in blocks] == sorted({start for start, _ in blocks})
            found = np.concatenate([np.empty((0, 8), np.float32), *(block for _, block in blocks)])
            np.testing.assert_array_equal(found, vectors[first:])
        np.testing.assert_array_equal(file.take([40, 3, 12, 13]), vectors[[40, 3, 12, 13]])
        assert [file.record(row)["id"] for row in (12, 13, 49)] == ["id-12", "id-13", "id-49"]


def random_tokens(rows: int, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, 3, 4)).astype(np.float16)


@pytest.mark.parametrize("dtype", ["float32", "int8", "binary"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_tokens(tmp_path: Path, suffix: str, dtype: str) -> None:
    tokens = random_tokens(20)
    file = write_folder(tmp_path / "parts", unit(20), 8, suffix, dtype, tokens)
    found = file.tokens([19, 0, 8])
    assert found is not None
    np.testing.assert_array_equal(found, tokens[[19, 0, 8]])
    assert file.tokens([]) is None
    assert write(tmp_path / f"none{suffix}", unit(3)).tokens([2]) is None
    for damage in (_cut, _empty, _pickle):
        damage(tmp_path / "parts" / "part-00000.tokens.npy")
        with pytest.raises(DataError, match=r"tokens\.npy: damaged or cut off, or no array of numbers$"):
            file.tokens([0])
    np.save(tmp_path / "parts" / "part-00000.tokens.npy", tokens[:3])
    with pytest.raises(DataError, match="not the tokens of 8 images"):
        file.tokens([0])


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_tokens_of_other_vectors_are_refused(tmp_path: Path, suffix: str) -> None:
    """Those of another model, of rows in another order, of one changed number, and of no `tcl embed`."""
    tokens, place = random_tokens(5), tmp_path / "v.tokens.npy"
    file = write(tmp_path / f"v{suffix}", unit(5), tokens=tokens)
    changed = tokens.copy()
    changed[2, 1, 3] += 1
    for other in (random_tokens(5, seed=1), np.roll(tokens, 1, axis=0), changed, tokens.astype(np.float32)):
        np.save(place, other)
        with pytest.raises(DataError, match=r"v\.tokens\.npy: row 2 is not what was kept") as caught:
            file.tokens([2])
        assert "--keep-tokens" in str(caught.value.hint)
    np.save(place, changed)
    assert file.tokens([0, 4]) is not None  # only what is used is looked at
    plain = write(tmp_path / f"w{suffix}", unit(5))
    np.save(tmp_path / "w.tokens.npy", tokens)
    with pytest.raises(DataError, match="row 0 is not what was kept"):
        plain.tokens([0])


def test_vectors_that_were_replaced_under_their_tokens(tmp_path: Path) -> None:
    tokens = random_tokens(5)
    write(tmp_path / "v.npy", unit(5), tokens=tokens)
    write(tmp_path / "w.npy", unit(5, seed=1), tokens=tokens)
    (tmp_path / "w.npy").replace(tmp_path / "v.npy")
    with pytest.raises(DataError, match="row 1 is not what was kept with its vector"):
        VectorFile.open(tmp_path / "v.npy").tokens([1])


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf):
        for dtype in ("float32", "float16"):
            vectors = unit(5)
            vectors[3, 2] = value
            file = write(tmp_path / f"{dtype}{value}.npy", vectors, dtype)
            for read in (lambda f: list(f.floats(2)), lambda f: f.mean, lambda f: f.take([0, 3])):
                with pytest.raises(DataError, match="row 3 is not finite"):
                    read(file)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pickle(path: Path) -> None:
    np.save(path, np.array([{}, {}]), allow_pickle=True)


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def _integers(path: Path) -> None:
    np.save(path, np.zeros((ROWS, 8), np.int64))


def _bytes_without_meaning(path: Path) -> None:
    np.save(path, np.zeros((ROWS, 8), np.int8))


def _other_shape(path: Path) -> None:
    np.save(path, np.zeros((ROWS, 8, 2), np.float32))


def _one_id_less(path: Path) -> None:
    lines = (path.parent / "v.ids.jsonl").read_text().splitlines(keepends=True)
    (path.parent / "v.ids.jsonl").write_text("".join(lines[:-1]))


def _no_ids(path: Path) -> None:
    (path.parent / "v.ids.jsonl").unlink()


def _other_count(path: Path) -> None:
    (path.parent / "v.meta.json").write_text('{"count": 3}')


def _meta_is_a_list(path: Path) -> None:
    (path.parent / "v.meta.json").write_text("[]")


def _cut_meta(path: Path) -> None:
    (path.parent / "v.meta.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_cut, DataError, "damaged or cut off"),
        (_empty, DataError, "damaged or cut off"),
        (_pickle, DataError, "damaged or cut off"),
        (_archive, DataError, "holds no array"),
        (_integers, DataError, "holds int64 of width 8"),
        (_bytes_without_meaning, DataError, "holds int8 of width 8"),
        (_other_shape, DataError, "not vectors"),
        (_one_id_less, DataError, "do not belong together: vectors: 50, ids: 49"),
        (_no_ids, UsageError, r"v\.ids\.jsonl: is missing"),
        (_other_count, DataError, "do not belong together: vectors: 50, the count"),
        (_meta_is_a_list, DataError, "holds no JSON object"),
        (_cut_meta, DataError, "malformed JSON"),
    ],
)
def test_damage(tmp_path: Path, damage: Callable[[Path], None], error: type[TclError], message: str) -> None:
    write(tmp_path / "v.npy", unit(ROWS))
    damage(tmp_path / "v.npy")
    with pytest.raises(error, match=message):
        VectorFile.open(tmp_path / "v.npy")


def test_what_is_no_file_of_vectors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        VectorFile.open(tmp_path / "v.npy")
    with pytest.raises(UsageError, match="not a file of vectors"):
        VectorFile.open(tmp_path / "v.txt")
    with pytest.raises(UsageError, match="or not complete"):
        VectorFile.open(tmp_path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    write(path, unit(ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="not vectors of"):
        VectorFile.open(path)
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(DataError, match=r"damaged or cut off|not finite"):
        list(VectorFile.open(path).floats(10))
    path.write_bytes(whole)
    parquet.write_table(parquet.read_table(path).drop(["vector"]), path)
    with pytest.raises(DataError, match="not vectors"):
        VectorFile.open(path)


def test_a_folder_whose_parts_do_not_belong_together(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    write_folder(folder, unit(20), 8)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"model_hash": "b" * 64}))
    with pytest.raises(DataError, match=r"part-00000\.npy: does not belong to"):
        VectorFile.open(folder)
    (folder / "meta.json").write_text(json.dumps(meta | {"parts": [{"file": "part-00000.npy"}]}))
    with pytest.raises(DataError, match=r"damaged: lacks parts\[0\].count"):
        VectorFile.open(folder)
    (folder / "meta.json").write_text(json.dumps(meta | {"parts": []}))
    with pytest.raises(DataError, match="or there are none"):
        VectorFile.open(folder)


def test_lines_that_hold_no_id(tmp_path: Path) -> None:
    write(tmp_path / "v.npy", unit(ROWS))
    (tmp_path / "v.ids.jsonl").write_text("nonsense\n" * ROWS)
    with pytest.raises(DataError, match="line 3: damaged: "):
        VectorFile.open(tmp_path / "v.npy").record(2)


def test_quantised_values_are_those_of_the_writer(tmp_path: Path) -> None:
    vectors = unit(20)
    file = write(tmp_path / "v.npy", vectors, "int8")
    raw = np.load(tmp_path / "v.npy")
    scale = np.array(file.meta["scale"], np.float32)
    np.testing.assert_array_equal(file.take(range(20)), dequantise(raw, "int8", 8, scale))
    assert file.meta["model_hash"] == HASH


@pytest.mark.parametrize(
    "shape", ["(3, 0)", "(3, -8)", "(-3, 8)", "(3, 10**30)", "(3, 1.5)", "(True, 8)", "'3'", "(3,"]
)
def test_headers_of_shapes_that_no_vectors_have(tmp_path: Path, shape: str) -> None:
    path = write(tmp_path / "v.npy", unit(3)).path
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = path.read_bytes()
    path.write_bytes(content[:10] + header.encode() + content[128:])
    with pytest.raises(DataError, match=r"v\.npy: "):
        VectorFile.open(path)
