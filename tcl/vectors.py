"""Vectors on disk: what `tcl embed` writes and `tcl search` reads. Imports no torch.

    vecs.npy            float32 or float16 [N, E], L2-normalised
    vecs.ids.jsonl      line i names row i: {"id", "status": "ok"}, and the text, or the path where that is not the id
    vecs.errors.jsonl   inputs without a vector: {"id", "reason"}; only when there are any
    vecs.meta.json      model hash, preprocessing, backend, precision, counts

With the suffix `.parquet` one file with the columns `id`, `vector`, and `text` or `path`, takes the place of the first
two. The file of vectors gets its name last, so vectors that are there are complete.
"""

from __future__ import annotations

import json
import tempfile
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
        UsageError: wrong suffix; `out`, or what a killed job left of it, exists, and `restart` is not given; or its
            folder is not writable.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: vectors are written as .npy or .parquet", hint=f"for example --out {out.stem}.npy")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="choose another name")
    # Vectors of the other format share their sidecar files, so they are in the way too.
    for path in (out, *(out.with_suffix(suffix) for suffix in SUFFIXES), *_names(out)):
        if path.exists() and not restart:
            raise UsageError(f"{path}: exists", hint="choose another name, or add --restart to replace it")
    if _partial(out).exists() and not restart:
        raise UsageError(
            f"{_partial(out)}: left by a job that was killed, or is still running",
            hint="if none is running, discard it with --restart",
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}", hint="choose another folder") from error


class VectorWriter:
    """Streams rows to disk under temporary names; `finish` gives the files their own.

    Args:
        out: final name of the vectors, `.npy` or `.parquet`.
        dim: width E of a vector.
        dtype: `float32` or `float16`.
        value_name: `text` or `path`: what rows are made of.
    """

    def __init__(self, out: Path, dim: int, dtype: str, value_name: str) -> None:
        self.out, self.dim, self.dtype = out, dim, np.dtype(dtype)
        self.count = self.failed = 0
        self._value_name = value_name
        self._open: list[IO[Any]] = []
        self._created = [out]
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
            row = {"id": row_id, "status": "ok"}
            if self._value_name == "text" or value != row_id:
                row[self._value_name] = value
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
        # From here on, and until the last rename, there are no vectors.
        for suffix in SUFFIXES:
            self.out.with_suffix(suffix).unlink(missing_ok=True)  # its sidecar files are about to be replaced
        for path in _names(self.out):
            if path in self._created:
                _partial(path).rename(path)
            else:
                path.unlink(missing_ok=True)  # of an earlier run

    def abandon(self) -> None:
        """Delete what was written; files of an earlier run stay."""
        self._close()
        for path in self._created:
            _partial(path).unlink(missing_ok=True)

    def _create(self, path: Path) -> IO[str]:
        # A name that is no Unicode is written as the JSON escape that reads back as the same name.
        file = _partial(path).open("w", encoding="utf-8", errors="backslashreplace")
        self._open.append(file)
        self._created.append(path)
        return file

    def _create_parquet(self) -> Any:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        value = pa.float16() if self.dtype == np.float16 else pa.float32()
        columns = [("id", pa.string()), ("vector", pa.list_(value, self.dim)), (self._value_name, pa.string())]
        return ParquetWriter(_partial(self.out), pa.schema(columns))

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
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    names, inputs = (
        pa.array([text.encode("utf-8", "backslashreplace") for text in texts], pa.binary()).cast(pa.string())
        for texts in (ids, values)
    )
    columns = [names, lists, inputs]
    return pa.record_batch(columns, schema=schema)


def _npy_header(rows: int, dim: int, dtype: np.dtype[Any]) -> bytes:
    """The header of a `.npy` of fixed length, so that it can be completed when the number of rows is known."""
    fields = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    prefix = b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little")
    return prefix + fields.ljust(NPY_HEADER_BYTES - 11).encode() + b"\n"
