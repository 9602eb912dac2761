"""Vectors on disk: what `tcl embed` writes and `tcl search` reads. Imports no torch.

    vecs.npy            float32 or float16 [N, E], L2-normalised
    vecs.ids.jsonl      line i names row i: {"id", "status": "ok"}, and the text where it is one
    vecs.errors.jsonl   inputs without a vector: {"id", "reason"}; only when there are any
    vecs.meta.json      model hash, preprocessing, backend, precision, counts

With the suffix `.parquet` one file with the columns `id`, `vector` (and `text`) takes the place of the first two. The file
of vectors gets its name last, so vectors that are there are complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import UsageError

SUFFIXES = (".npy", ".parquet")
NPY_HEADER_BYTES = 128


def sidecar(out: Path, name: str) -> Path:
    """The file beside the vectors: `sidecar(vecs.npy, "ids.jsonl")` is `vecs.ids.jsonl`."""
    return out.with_name(f"{out.stem}.{name}")


def check_output(out: Path, restart: bool = False) -> None:
    """Can vectors be written to `out`? Creates its folder.

    Raises:
        UsageError: wrong suffix, `out` exists and `restart` does not allow to replace it, or the folder is not writable.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: vectors are written as .npy or .parquet", hint=f"for example --out {out.stem}.npy")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="choose another name")
    if out.exists() and not restart:
        raise UsageError(f"{out}: exists", hint="choose another name, or add --restart to replace it")
    probe = _partial(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}", hint="choose another folder") from error


class VectorWriter:
    """Streams rows to disk under temporary names; `finish` gives the files their own.

    Args:
        out: final name of the vectors, `.npy` or `.parquet`.
        dim: width E of a vector.
        dtype: `float32` or `float16`.
        texts: rows are texts, which are written beside their ids.
    """

    def __init__(self, out: Path, dim: int, dtype: str, texts: bool) -> None:
        self.out, self.dim, self.dtype = out, dim, np.dtype(dtype)
        self.count = self.failed = 0
        self._texts = texts
        self._open: list[IO[Any]] = []
        self._errors: IO[str] | None = None
        self._parquet = self._create_parquet() if out.suffix == ".parquet" else None
        if self._parquet is None:
            self._ids = self._create(sidecar(out, "ids.jsonl"))
            self._vectors = _partial(out).open("wb")
            self._open.append(self._vectors)
            self._vectors.write(_npy_header(0, dim, self.dtype))

    def append(self, ids: Sequence[str], values: Sequence[str], vectors: NDArray[Any]) -> None:
        """Write rows: their ids, the inputs they were made of, and vectors [B, E]."""
        vectors = np.ascontiguousarray(vectors, dtype=self.dtype)
        self.count += len(ids)
        if self._parquet is not None:
            self._parquet.write_batch(_record_batch(self._parquet.schema, ids, values, vectors))
            return
        self._vectors.write(vectors.tobytes())
        for row_id, value in zip(ids, values, strict=True):
            row = {"id": row_id, "status": "ok"} | ({"text": value} if self._texts else {})
            self._ids.write(json.dumps(row, ensure_ascii=False) + "\n")

    def fail(self, row_id: str, reason: str) -> None:
        """Record an input that has no vector."""
        if self._errors is None:
            self._errors = self._create(sidecar(self.out, "errors.jsonl"))
        self.failed += 1
        self._errors.write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")

    def finish(self, meta: dict[str, Any]) -> None:
        """Complete the files and give them their names, the vectors last."""
        if self._parquet is None:
            self._vectors.seek(0)
            self._vectors.write(_npy_header(self.count, self.dim, self.dtype))
        meta_file = self._create(sidecar(self.out, "meta.json"))
        meta_file.write(json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
        self._close()
        self.out.unlink(missing_ok=True)  # from here on, and until the last rename, there are no vectors
        for path in _names(self.out):
            if _partial(path).exists():
                _partial(path).rename(path)
            else:
                path.unlink(missing_ok=True)  # of an earlier run

    def abandon(self) -> None:
        """Delete what was written; files of an earlier run stay."""
        self._close()
        for path in _names(self.out):
            _partial(path).unlink(missing_ok=True)

    def _create(self, path: Path) -> IO[str]:
        file = _partial(path).open("w", encoding="utf-8")
        self._open.append(file)
        return file

    def _create_parquet(self) -> Any:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        value = pa.float16() if self.dtype == np.float16 else pa.float32()
        columns = [("id", pa.string()), ("vector", pa.list_(value, self.dim))]
        schema = pa.schema(columns + ([("text", pa.string())] if self._texts else []))
        return ParquetWriter(_partial(self.out), schema)

    def _close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
        for file in self._open:
            file.close()


def _names(out: Path) -> list[Path]:
    """Every file that belongs to the vectors, in the order in which they get their names."""
    return [sidecar(out, "ids.jsonl"), sidecar(out, "errors.jsonl"), sidecar(out, "meta.json"), out]


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _record_batch(schema: Any, ids: Sequence[str], values: Sequence[str], vectors: NDArray[Any]) -> Any:
    import pyarrow as pa

    flat = pa.array(vectors.reshape(-1))
    columns = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    if "text" in schema.names:
        columns.append(pa.array(values, pa.string()))
    return pa.record_batch(columns, schema=schema)


def _npy_header(rows: int, dim: int, dtype: np.dtype[Any]) -> bytes:
    """The header of a `.npy` of fixed length, so that it can be completed when the number of rows is known."""
    fields = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    prefix = b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little")
    return prefix + fields.ljust(NPY_HEADER_BYTES - 11).encode() + b"\n"
