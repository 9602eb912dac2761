"""Products of query vectors with stored vectors, without a float32 copy of the whole collection.

Large products with float16 rows are left to ONNX Runtime where it is installed: it is three times as fast as numpy can
be. Its graph, `float16.onnx`, is `MatMul(Cast(rows, float32), queries)`; a test writes it again and compares.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
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

# Moved 3 bits to the right, sign kept, a float16 has the places of a float32's sign, exponent and fraction; what is
# missing is the difference of the two exponents' zero points, a factor that the queries take. Infinities and NaN would
# become numbers above 65,000.
_FLOAT16_PLACES = np.array(0x8FFFE000, np.uint32).view(np.int32)[()]
_FLOAT16_FACTOR = np.float32(2.0**112)

_FEW_QUERIES = 8  # up to here, one by one takes no longer

_Piece = tuple[slice, NDArray[np.float32], Any]
_memory = threading.local()


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
        values = VALUES_AT_ONCE
        if self.dtype == "float16":
            values = FLOAT16_VALUES_AT_ONCE if find_spec("onnxruntime") else 2 * VALUES_AT_ONCE
        return max(1, values // self.dim)

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
        pieces = self._pieces(stored)
        columns, values, weights = next(pieces)
        products = _multiply(queries[:, columns] * weights, values)
        for columns, values, weights in pieces:
            products += _multiply(queries[:, columns] * weights, values)
        return products

    def total(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Sum of stored rows [E]; not finite where a value is not."""
        total = np.empty(self.dim, np.float64)
        ones = np.ones(len(stored), np.float32)
        for columns, values, weights in self._pieces(stored):
            with np.errstate(invalid="ignore"):  # infinities of both signs
                total[columns] = (ones @ values).astype(np.float64) * weights
        return total

    def _pieces(self, stored: NDArray[Any]) -> Iterator[_Piece]:
        """Columns, and what they hold as float32 up to a factor; overwritten by the next piece."""
        every = slice(None)
        if self.dtype == "float16" and _can_shift(stored):
            words = np.asarray(stored, "<f2").view("<i4")  # two values each, the first in the lower half
            moved = _scratch(words.shape)
            np.right_shift(words, 3, out=moved)
            moved &= _FLOAT16_PLACES
            yield slice(1, None, 2), moved.view(np.float32), _FLOAT16_FACTOR
            np.left_shift(words, 16, out=moved)
            moved >>= 3
            moved &= _FLOAT16_PLACES
            yield slice(0, None, 2), moved.view(np.float32), _FLOAT16_FACTOR
        elif self.dtype == "int8":
            yield every, stored.astype(np.float32), self.scale
        else:
            yield every, stored if self.dtype == "float32" else self.floats(stored), np.float32(1)


def _multiply(queries: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products [Q, n] of queries [Q, w] and values [n, w]; few queries one by one, so that BLAS starts no threads."""
    with np.errstate(invalid="ignore"):  # an infinity times zero; whoever asks looks for such products
        if len(queries) <= _FEW_QUERIES:
            return np.stack([values @ query for query in queries])
        return queries @ values.T


def _can_shift(stored: NDArray[np.float16]) -> bool:
    """Is it laid out in pairs, and finite by its bits? numpy's own conversion takes eight times as long."""
    if stored.shape[1] % 2 or not stored.flags.c_contiguous:
        return False
    positive, negative = (stored.view(kind).max(initial=0) for kind in (np.int16, np.uint16))
    return bool(positive < 0x7C00 and negative < 0xFC00)


def _scratch(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """An array to overwrite, the same one each time in a thread: fresh memory would have to be mapped first."""
    size = int(np.prod(shape))
    array: NDArray[np.int32] | None = getattr(_memory, "array", None)
    if array is None or array.size < size:
        array = _memory.array = np.empty(size, np.int32)
    return array[:size].reshape(shape)
