"""What a stored value is, how far it is from the vector's, and what that costs in search, against plain formulas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl.vectors import dtypes as module
from tcl.vectors.dtypes import dequantise, int8_scale, quantise, quantise_each, recall_kept, stored_type, stored_width
from tests.vectors.vector_files import unit

DTYPES = ["float32", "float16", "int8", "binary"]


@pytest.mark.parametrize("rows", [0, 1, 50])
@pytest.mark.parametrize("dim", [1, 7, 8, 9, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_come_back_as_near_as_the_type_can_hold_them(dtype: str, dim: int, rows: int) -> None:
    vectors = unit(rows, dim) * np.linspace(0.1, 3, dim, dtype=np.float32)  # every column has a range of its own
    scale = int8_scale(np.abs(vectors).max(axis=0, initial=0))
    stored = quantise(vectors, dtype, scale)
    assert stored.dtype == stored_type(dtype) == {"binary": np.uint8}.get(dtype, dtype)
    assert stored.shape == (rows, stored_width(dim, dtype)) == (rows, (dim + 7) // 8 if dtype == "binary" else dim)
    again = dequantise(stored, dtype, dim, scale)
    assert again.dtype == np.float32 and again.shape == vectors.shape
    if dtype == "binary":
        np.testing.assert_array_equal(again, np.where(vectors > 0, 1, -1))
    else:
        step = {"float32": 0, "float16": np.abs(vectors) * 2.0**-10, "int8": scale}[dtype]
        assert (np.abs(again - vectors) <= np.multiply(step, 0.5001)).all()


def test_int8_uses_the_whole_range_of_each_column() -> None:
    vectors = unit(200) * np.geomspace(1e-6, 1e3, 8, dtype=np.float32)
    largest = np.abs(vectors).max(axis=0)
    scale = int8_scale(largest)
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale * 127, largest, rtol=1e-6)
    stored = quantise(vectors, "int8", scale).astype(int)
    assert np.abs(stored).max(axis=0).tolist() == [127] * 8
    # A number stands for values on both sides of it: no rounding towards zero, nor downwards.
    assert abs(np.mean(stored - vectors / scale)) < 0.03
    assert abs(np.mean(np.abs(stored) - np.abs(vectors / scale))) < 0.03


def test_int8_values_by_hand() -> None:
    scale = np.array([0.5, 2, 1], np.float32)
    values = np.array([[0.7, -3.1, 0], [64, -255, 126.6], [-1e6, 1e6, -128]], np.float32)
    stored = quantise(values, "int8", scale)
    assert stored.tolist() == [[1, -2, 0], [127, -127, 127], [-127, 127, -127]]  # beyond the range is its end
    assert dequantise(stored, "int8", 3, scale).tolist() == [[0.5, -4, 0], [63.5, -254, 127], [-63.5, 254, -127]]
    zeros = np.zeros((2, 3), np.float32)
    assert int8_scale(zeros[0]).tolist() == [1, 1, 1]  # nothing is divided by zero
    assert not quantise(zeros, "int8", int8_scale(zeros[0])).any()


def test_bits_by_hand() -> None:
    vector = np.array([[0.1, -0.1, 0, -0.0, 1e-30, -5, 5, -1, -1, 2]], np.float32)
    bits = quantise(vector, "binary")
    assert bits.tolist() == [[0b10001010, 0b01000000]]  # the first column is the highest bit; 0 is not above 0
    assert dequantise(bits, "binary", 10).tolist() == [[1, -1, -1, -1, 1, -1, 1, -1, -1, 1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_by_themselves(dtype: str) -> None:
    """Batches make no difference, and int8 numbers are the direction."""
    vectors = unit(20, 12)
    together = quantise_each(vectors, dtype)
    np.testing.assert_array_equal(together, np.concatenate([quantise_each(vectors[[row]], dtype) for row in range(20)]))
    assert together.dtype == stored_type(dtype)
    if dtype == "int8":
        assert np.abs(together.astype(int)).max(axis=1).tolist() == [127] * 20
        directions = together / np.linalg.norm(together.astype(float), axis=1, keepdims=True)
        assert np.abs(directions - vectors).max() < np.abs(vectors).max() / 127
        # A short vector has a coarser step of its own than a long one.
        np.testing.assert_array_equal(quantise_each(vectors * np.float32(2.0**-5), dtype), together)
    else:
        np.testing.assert_array_equal(together, quantise(vectors, dtype))
    assert not quantise_each(np.zeros((2, 5), np.float32), dtype).any()
    assert quantise_each(np.empty((0, 5), np.float32), dtype).shape == (0, stored_width(5, dtype))


def _plain_recall(vectors: NDArray[np.float32], again: NDArray[np.float32], queries: NDArray[np.int64]) -> float:
    """Sort all rows by their product with each query, which is left out; of equal ones the first rows are nearest."""
    top, nearest = min(10, len(vectors) - 1), []
    for collection in (vectors, again):
        scores = vectors[queries].astype(np.float64) @ collection.T
        scores[np.arange(len(queries)), queries] = -np.inf
        nearest.append(np.argsort(-scores, axis=1, kind="stable")[:, :top].tolist())
    return sum(len(set(a) & set(b)) for a, b in zip(*nearest, strict=True)) / (len(queries) * top)


@pytest.mark.parametrize(("dtype", "step"), [("binary", 1), ("int8", 2), ("int8", 1)])
@pytest.mark.parametrize("rows", [2, 10, 11, 12, 300])
@pytest.mark.parametrize("chunk", [3, 64, 1000])
def test_recall_equals_sorting_everything(dtype: str, step: int, rows: int, chunk: int) -> None:
    """Of small whole numbers, whose products are exact, and many of them equal."""
    vectors = np.random.default_rng(0).integers(-2, 3, (rows, 5)).astype(np.float32)
    scale = np.full(5, step, np.float32)
    again = dequantise(quantise(vectors, dtype, scale), dtype, 5, scale)

    def chunks() -> Iterator[NDArray[np.float32]]:
        yield vectors[:0]  # all inputs of a part may have failed
        for start in range(0, rows, chunk):
            yield vectors[start : start + chunk]

    share, queries = recall_kept(chunks, rows, dtype, scale)
    assert queries == rows
    assert share == pytest.approx(_plain_recall(vectors, again, np.arange(rows)), abs=1e-12)
    assert step == 2 or dtype == "binary" or share == 1


@pytest.mark.parametrize(("pairs", "queries"), [(10**9, 1000), (1500 * 90 + 5, 90), (10, 1)])
def test_recall_of_many_rows_is_that_of_some_evenly_spaced(
    monkeypatch: pytest.MonkeyPatch, pairs: int, queries: int
) -> None:
    monkeypatch.setattr(module, "_RECALL_PAIRS", pairs)
    vectors = np.random.default_rng(0).integers(-2, 3, (1500, 5)).astype(np.float32)
    chosen = np.linspace(0, 1499, queries).astype(np.int64)
    again = np.where(vectors > 0, 1, -1).astype(np.float32)
    expected = _plain_recall(vectors, again, chosen), queries
    assert recall_kept(lambda: np.split(vectors, [512, 1024]), 1500, "binary") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_recall_of_each_type(dtype: str) -> None:
    vectors = unit(300, 12)
    scale = int8_scale(np.abs(vectors).max(axis=0))
    share, queries = recall_kept(lambda: np.split(vectors, [100]), 300, dtype, scale)
    assert queries == 300 and {"float16": 0.99, "int8": 0.93, "binary": 0.3}[dtype] < share <= 1


def test_recall_of_very_few() -> None:
    assert recall_kept(lambda: [unit(1)], 1, "binary") == (1.0, 0)
    assert recall_kept(lambda: [unit(2)], 2, "binary") == (1.0, 2)
    assert recall_kept(lambda: [], 0, "binary") == (1.0, 0)
