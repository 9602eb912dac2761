"""Files of vectors for the tests of search, index and dedup."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcl.vectors.dtypes import int8_scale
from tcl.vectors.reader import VectorFile
from tcl.vectors.writer import VectorWriter

HASH = "a" * 64


def unit(rows: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    """Random vectors of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    normalised: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def write(
    path: Path,
    vectors: NDArray[np.float32],
    dtype: str = "float32",
    first: int = 0,
    tokens: NDArray[np.float16] | None = None,
) -> VectorFile:
    """Vectors with the ids `id-0`, `id-1`, ... and texts that go with them, as `tcl embed` writes them."""
    scale = int8_scale(np.abs(vectors).max(axis=0)) if dtype == "int8" else None
    shape = None if tokens is None else (tokens.shape[1], tokens.shape[2])
    writer = VectorWriter(path, vectors.shape[1], dtype, "text", scale=scale, token_shape=shape)
    ids = [f"id-{row}" for row in range(first, first + len(vectors))]
    for rows in (slice(len(vectors) // 2), slice(len(vectors) // 2, len(vectors))):
        kept = None if tokens is None else tokens[rows]
        writer.append(ids[rows], [f"text {name}" for name in ids[rows]], vectors[rows], kept)
    meta = {"kind": "text", "count": len(vectors), "model_hash": HASH, "dim": vectors.shape[1]}
    writer.finish(meta if scale is None else meta | {"scale": scale.tolist()})
    return VectorFile.open(path)


def write_folder(
    folder: Path,
    vectors: NDArray[np.float32],
    rows: int,
    suffix: str = ".npy",
    dtype: str = "float32",
    tokens: NDArray[np.float16] | None = None,
) -> VectorFile:
    """The same in parts of so many rows."""
    folder.mkdir()
    parts = []
    for start in range(0, len(vectors), rows):
        name = f"part-{len(parts):05}{suffix}"
        kept = None if tokens is None else tokens[start : start + rows]
        part = write(folder / name, vectors[start : start + rows], dtype, start, kept)
        parts.append({"file": name, "count": len(part)})
    meta = {"kind": "text", "count": len(vectors), "model_hash": HASH, "parts": parts}
    (folder / "meta.json").write_text(json.dumps(meta))
    return VectorFile.open(folder)
