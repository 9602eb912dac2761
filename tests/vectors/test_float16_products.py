"""Products with float16 rows by ONNX Runtime are those of float32, and the graph is the one that is described."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tcl.vectors import products as module
from tcl.vectors import products as stored_vectors
from tcl.vectors.products import FLOAT16_VALUES_AT_ONCE, GRAPH, StoredVectors, float16_products
from tests.vectors.vector_files import unit

ROWS = FLOAT16_VALUES_AT_ONCE // 8  # a full block of width 8


def test_graph_is_a_cast_and_a_product() -> None:
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("rows", TensorProto.FLOAT16, ["n", "E"]),
            ("queries", TensorProto.FLOAT, ["E", "Q"]),
            ("products", TensorProto.FLOAT, ["n", "Q"]),
        )
    ]
    nodes = [
        helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "queries"], ["products"]),
    ]
    graph = helper.make_graph(nodes, "float16_products", values[:2], values[2:])
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert onnx.load(GRAPH) == expected


@pytest.mark.parametrize("count", [1, 3, 20])
def test_full_blocks_equal_float32(count: int) -> None:
    stored, queries = unit(ROWS).astype(np.float16), unit(count, seed=1)
    products = StoredVectors("float16", 8).products(queries, stored)
    assert products.shape == (count, ROWS)
    np.testing.assert_allclose(products, queries @ stored.astype(np.float32).T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("installed", [True, False])
def test_a_value_that_is_not_finite_is_seen(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setattr(stored_vectors, "float16_products", lambda queries, rows: None)
    stored = unit(ROWS).astype(np.float16)
    stored[5, 2], stored[7, 3] = np.nan, np.inf
    query = unit(1, seed=1)
    query[0, 2:4] = 0  # what is not a number is none times zero either
    products = StoredVectors("float16", 8).products(query, stored)[0]
    assert np.flatnonzero(~np.isfinite(products)).tolist() == [5, 7]


def test_without_onnx_runtime_the_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, queries = unit(ROWS).astype(np.float16), unit(2, seed=1)
    fast = float16_products(queries, stored)
    assert fast is not None
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert float16_products(queries, stored) is None
    np.testing.assert_allclose(StoredVectors("float16", 8).products(queries, stored), fast, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "rows", "used"),
    [("float16", ROWS // 2 + 1, True), ("float16", ROWS // 2, False), ("float16", 0, False), ("float32", ROWS, False)],
)
def test_onnx_runtime_is_loaded_where_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, dtype: str, rows: int, used: bool
) -> None:
    asked = []

    def noted(queries: NDArray[np.float32], stored: NDArray[Any]) -> None:
        asked.append(len(stored))

    monkeypatch.setattr(stored_vectors, "float16_products", noted)
    StoredVectors(dtype, 8).products(unit(1), unit(rows).astype(dtype))
    assert asked == [rows] * used


def test_it_runs_on_the_cores_of_this_process_and_on_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: str, options: Any, providers: list[str]) -> Any:
        assert (options.intra_op_num_threads, providers) == (3, ["CPUExecutionProvider"])
        return SimpleNamespace(run=lambda outputs, feed: [feed["rows"].astype(np.float32) @ feed["queries"]])

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(module, "available_cores", lambda: 3)
    module._session.cache_clear()
    try:
        assert float16_products(np.ones((1, 2), np.float32), np.ones((3, 2), np.float16)).tolist() == [[2, 2, 2]]  # type: ignore[union-attr]
    finally:
        module._session.cache_clear()
