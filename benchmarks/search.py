"""One query over many vectors on disk, against one numpy float32 matrix-vector product over the same in memory.

    python benchmarks/search.py                     # 1 million float16 vectors of 256 entries
    python benchmarks/search.py --rows 100000 --dtypes float16,float32,int8,binary

The two take turns, so that other work on the machine slows both; the ratio is the median over the turns. Ours includes
picking the hits and reading their ids. The other gives scores only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from tcl.search.exact import ExactCollection
from tcl.vectors.dtypes import int8_scale
from tcl.vectors.reader import VectorFile
from tcl.vectors.writer import VectorWriter

WANTED = 1.5  # times the product, for float16
BLOCK = 50_000
TURNS = 25
PAUSE = 0.1  # seconds
TOP = 10


def unit(draw: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    """Random vectors of length 1."""
    vectors = draw.standard_normal((rows, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write(folder: Path, vectors: NDArray[np.float32], dtype: str) -> VectorFile:
    """The same vectors as `tcl embed` writes them."""
    out = folder / f"{dtype}.npy"
    scale = int8_scale(np.abs(vectors).max(axis=0)) if dtype == "int8" else None
    writer = VectorWriter(out, vectors.shape[1], dtype, "path", scale=scale)
    for start in range(0, len(vectors), BLOCK):
        names = [f"folder/{row}.jpg" for row in range(start, min(start + BLOCK, len(vectors)))]
        writer.append(names, names, vectors[start : start + BLOCK])
    meta: dict[str, Any] = {"kind": "image", "count": len(vectors), "model_hash": "0", "dim": vectors.shape[1]}
    writer.finish(meta if scale is None else meta | {"scale": scale.tolist()})
    return VectorFile.open(out)


def clock(action: Callable[[], object]) -> float:
    """Seconds; after a pause, for threads of BLAS keep a core busy for a while after their work."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def compare(collection: ExactCollection, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> dict[str, Any]:
    """Milliseconds of both sides, and whether they find the same."""
    ours: list[float] = []
    plain: list[float] = []
    for turn in range(TURNS + 1):
        times = clock(lambda: vectors @ query), clock(lambda: collection.search(query[None], TOP))
        if turn:  # the first one fills caches on both sides
            plain.append(times[0])
            ours.append(times[1])
    scores = vectors @ query
    best = set(np.argsort(-scores)[:TOP].tolist())
    found = {hit.row for hit in collection.search(query[None], TOP)[0]}
    return {
        "ours_ms": round(median(ours) * 1000, 1),
        "product_ms": round(median(plain) * 1000, 1),
        "ours_least_ms": round(min(ours) * 1000, 1),
        "product_least_ms": round(min(plain) * 1000, 1),
        "ratio": round(median(a / b for a, b in zip(ours, plain, strict=True)), 2),
        "recall_at_10": len(best & found) / TOP,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--dtypes", default="float16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    vectors = np.concatenate(
        [unit(draw, min(BLOCK, options.rows - s), options.dim) for s in range(0, options.rows, BLOCK)]
    )
    query = unit(draw, 1, options.dim)[0]
    results: dict[str, Any] = {"rows": options.rows, "dim": options.dim, "numpy": np.__version__, "wanted": WANTED}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in options.dtypes.split(","):
            file = write(Path(folder), vectors, dtype)
            results[dtype] = compare(ExactCollection(file), vectors, query)
            results[dtype]["centred_ms"] = round(
                clock(lambda f=file: ExactCollection(f, True).search(query[None], TOP)) * 1000
            )
            print(dtype, json.dumps(results[dtype]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    ratio = results.get("float16", {}).get("ratio", 0)
    if ratio > WANTED:
        sys.exit(f"float16: {ratio} times the product, {WANTED} wanted")


if __name__ == "__main__":
    main()
