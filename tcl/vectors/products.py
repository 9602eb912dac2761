"""Products of query vectors with stored vectors, without a float32 copy of the whole collection.

Large products with float16 rows are left to ONNX Runtime where it is installed: it is three times as fast as numpy can
be. Its graph, `float16.onnx`, is `MatMul(Cast(rows, float32), queries)`; a test writes it again and compares.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.machine.processes import available_cores
from tcl.vectors.dtypes import dequantise

GRAPH = Path(__file__).with_name("float16.onnx")


def float16_products(queries: NDArray[np.float32], rows: NDArray[np.float16]) -> NDArray[np.float32] | None:
    """Inner products [Q, n] of queries [Q, E] with rows [n, E]; None where ONNX Runtime is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    feed = {"rows": rows, "queries": np.ascontiguousarray(queries.T)}
    products: NDArray[np.float32] = _session().run(None, feed)[0]
    return products.T


@cache
def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    return onnxruntime.InferenceSession(str(GRAPH), options, providers=["CPUExecutionProvider"])


VALUES_AT_ONCE = 262_144
"""In one product: they stay in the cache, and are too few for BLAS to wake its threads for them."""

FLOAT16_VALUES_AT_ONCE = 2_097_152
"""The same for float16 where ONNX Runtime, whose threads share them, is installed."""

_FEW_QUERIES = 8  # up to here, one by one takes no longer


class StoredVectors:
    """How stored rows become numbers.

    Args:
        dtype: `float32`, `float16`, `int8` or `binary`, see `tcl.vectors.dtypes`.
        dim: width E of a vector.
        scale: of `int8`, [E].
    """

    def __init__(self, dtype: str, dim: int, scale: NDArray[np.float32] | None = None) -> None:
        self.dtype, self.dim, self.scale = dtype, dim, scale

    @property
    def rows_at_once(self) -> int:
        """Rows that `products` is fastest with."""
        large = self.dtype == "float16" and find_spec("onnxruntime") is not None
        return max(1, (FLOAT16_VALUES_AT_ONCE if large else VALUES_AT_ONCE) // self.dim)

    def floats(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored rows as float32 vectors [n, E]; binary ones have length 1 too."""
        vectors = dequantise(stored, self.dtype, self.dim, self.scale)
        return vectors / np.float32(np.sqrt(self.dim)) if self.dtype == "binary" else vectors

    def products(self, queries: NDArray[np.float32], stored: NDArray[Any]) -> NDArray[np.float32]:
        """Inner products [Q, n] of queries [Q, E] with stored rows; not finite where a value of the row is not."""
        if self.dtype == "float16" and 2 * stored.size > FLOAT16_VALUES_AT_ONCE:  # else not worth loading it
            products = float16_products(queries, stored)
            if products is not None:
                return products
        values, factor = self._values(stored)
        return _multiply(queries * factor, values)

    def total(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Sum of stored rows [E]; not finite where a value is not."""
        values, factor = self._values(stored)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            return (np.ones(len(stored), np.float32) @ values).astype(np.float64) * factor

    def _values(self, stored: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32] | np.float32]:
        """Numbers [n, E], and what they are to be multiplied by: [E], or one for all."""
        if self.dtype == "int8":
            assert self.scale is not None
            return stored.astype(np.float32), self.scale
        return stored if self.dtype == "float32" else self.floats(stored), np.float32(1)


def _multiply(queries: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products [Q, n] of queries [Q, w] and values [n, w]; few queries one by one, so that BLAS starts no threads."""
    with np.errstate(invalid="ignore"):  # an infinity times zero; whoever asks looks for such products
        if len(queries) <= _FEW_QUERIES:
            return np.stack([values @ query for query in queries])
        return queries @ values.T
