"""Products of queries with vectors as they are stored are those of plain float64, in every type and layout."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl.vectors import products as stored_vectors
from tcl.vectors.products import FLOAT16_VALUES_AT_ONCE, VALUES_AT_ONCE, StoredVectors
from tests.vectors.vector_files import unit

LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "rows": lambda stored: stored,
    "every third row": lambda stored: np.repeat(stored, 3, axis=0)[::3],
    "columns": np.asfortranarray,
    "backwards": lambda stored: stored[::-1].copy()[::-1],
}


def _stored(dtype: str, dim: int, rows: int) -> tuple[StoredVectors, NDArray[Any], NDArray[np.float64]]:
    """Random stored vectors and what they mean, from the definition."""
    draw = np.random.default_rng(dim)
    if dtype == "int8":
        scale = draw.uniform(0.001, 0.01, dim).astype(np.float32)
        stored = draw.integers(-127, 128, (rows, dim)).astype(np.int8)
        return StoredVectors(dtype, dim, scale), stored, stored * scale.astype(np.float64)
    if dtype == "binary":
        bits = draw.integers(0, 2, (rows, dim))
        return StoredVectors(dtype, dim), np.packbits(bits, axis=1), np.where(bits, 1, -1) / np.sqrt(dim)
    stored = (draw.standard_normal((rows, dim)) / np.sqrt(dim)).astype(dtype)
    return StoredVectors(dtype, dim), stored, stored.astype(np.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, 2, 8, 9, 16])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_products_sums_and_values(dtype: str, dim: int, layout: str) -> None:
    code, stored, values = _stored(dtype, dim, 40)
    stored = LAYOUTS[layout](stored)
    stored.flags.writeable = False  # as of a file that is mapped
    for count in (1, 2, 8, 9, 30):
        queries = unit(count, dim, seed=count)
        queries.flags.writeable = False
        products = code.products(queries, stored)
        assert products.dtype == np.float32
        np.testing.assert_allclose(products, queries.astype(np.float64) @ values.T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(code.total(stored), values.sum(axis=0), rtol=0, atol=1e-5)
    floats = code.floats(stored)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, values, rtol=2e-7, atol=0)
    assert code.products(queries, stored[:0]).shape == (30, 0)
    assert code.total(stored[:0]).tolist() == [0] * dim


def test_every_finite_float16() -> None:
    """Those below the normal range and the largest ones included."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    stored = every[np.isfinite(every)].reshape(-1, 8)
    queries = unit(3)
    exact = queries.astype(np.float64) @ stored.astype(np.float64).T
    code = StoredVectors("float16", 8)
    largest = np.abs(stored).max(axis=1).astype(np.float64)
    assert (np.abs(code.products(queries, stored) - exact) <= 1e-6 * largest).all()
    sums = stored[:100].sum(axis=0, dtype=np.float64)
    assert (np.abs(code.total(stored[:100]) - sums) <= 1e-6 * largest[:100].sum()).all()
    assert code.products(np.ones((1, 2), np.float32), np.array([[65504, -65504], [65504, 0]], np.float16)).tolist() == [
        [0, 65504]
    ]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dim", [7, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_value_that_is_not_finite_shows_in_every_product(dtype: str, dim: int, value: float) -> None:
    for column in (2, 3):
        stored = unit(20, dim).astype(dtype)
        stored[5, column] = value
        for count in (1, 20):
            queries = unit(count, dim, seed=1)
            queries[:, column] = 0  # what is not a number is none times zero either
            products = StoredVectors(dtype, dim).products(queries, stored)
            assert (~np.isfinite(products)).nonzero()[1].tolist() == [5] * count
        total = StoredVectors(dtype, dim).total(stored)
        assert np.flatnonzero(~np.isfinite(total)).tolist() == [column]
        stored[6, column] = -stored[5, column]  # infinities of both signs
        assert not np.isfinite(StoredVectors(dtype, dim).total(stored)[column])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_few_queries_score_to_the_bit_as_each_by_itself(dtype: str) -> None:
    code, stored, _ = _stored(dtype, 64, 500)
    queries = unit(8, 64)
    together = code.products(queries, stored)
    for query, products in zip(queries, together, strict=True):
        np.testing.assert_array_equal(code.products(query[None], stored)[0], products)


def test_threads_do_not_disturb_each_other() -> None:
    code, queries = StoredVectors("float16", 8), unit(2, seed=1)
    blocks = [unit(rows, seed=rows).astype(np.float16) for rows in (9000, 3000, 12000, 6000)]
    expected = [queries @ block.astype(np.float32).T for block in blocks]

    def compare(number: int) -> None:
        for turn in range(number, number + 12):  # sizes grow and shrink
            found = code.products(queries, blocks[turn % 4])
            np.testing.assert_allclose(found, expected[turn % 4], rtol=0, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compare, range(4)))


def test_blocks_are_as_large_as_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ONNX Runtime its threads share a larger block of float16."""

    def values(dtype: str, dim: int) -> int:
        rows = StoredVectors(dtype, dim).rows_at_once
        assert isinstance(rows, int)
        return rows * dim

    for dim in (1, 256, 1000):
        for dtype in ("float32", "int8", "binary"):
            assert VALUES_AT_ONCE - dim < values(dtype, dim) <= VALUES_AT_ONCE
        assert FLOAT16_VALUES_AT_ONCE - dim < values("float16", dim) <= FLOAT16_VALUES_AT_ONCE
        with monkeypatch.context() as without:
            without.setattr(stored_vectors, "find_spec", lambda name: None)
            assert VALUES_AT_ONCE - dim < values("float16", dim) <= VALUES_AT_ONCE
    assert StoredVectors("float32", 10**9).rows_at_once == 1
