"""Vectors written row by row, whatever their format; `tcl.vectors.files` says what comes of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import without_secrets
from tcl.files.atomic import write_whole
from tcl.files.names import to_unicode
from tcl.vectors.dtypes import quantise, stored_type, stored_width
from tcl.vectors.files import COMPLETE, TOKENS_CHECKSUM, partial_folder, publish, sidecar, tokens_checksum

NPY_HEADER_BYTES = 128
ROW_GROUP_BYTES = 32 << 20  # of vectors in a Parquet row group; as much is held in memory while writing


class VectorWriter:
    """Streams rows to files in a folder of their own, from where `publish` moves them to their place.

    Args:
        out: final name of the vectors, `.npy` or `.parquet`.
        dim: width E of a vector.
        dtype: `float32`, `float16`, `int8` or `binary`.
        value_name: `text` or `path`: what rows are made of.
        folder: to write in; by default `<out>.partial`.
        scale: of `int8`, [E].
        token_shape: (T, W) where tokens are kept.
    """

    def __init__(
        self,
        out: Path,
        dim: int,
        dtype: str,
        value_name: str,
        folder: Path | None = None,
        scale: NDArray[np.float32] | None = None,
        token_shape: tuple[int, int] | None = None,
    ) -> None:
        self.out, self.dim, self.dtype, self.scale = out, dim, dtype, scale
        self.folder = folder or partial_folder(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count = self.failed = 0
        self._value_name = value_name
        self._texts: dict[str, IO[str]] = {}
        self._arrays: list[_NpyFile] = []
        self._rows: _ParquetRows | None = None
        width, kind = stored_width(dim, dtype), stored_type(dtype)
        if out.suffix == ".parquet":
            self._rows = _ParquetRows(self.folder / out.name, width, kind, value_name, token_shape is not None)
        else:
            self._arrays.append(_NpyFile(self.folder / out.name, (width,), kind))
            self._text("ids.jsonl")
        if token_shape:
            self._arrays.append(_NpyFile(self._place("tokens.npy"), token_shape, np.dtype(np.float16)))

    def append(
        self,
        ids: Sequence[str],
        values: Sequence[str],
        vectors: NDArray[np.float32],
        tokens: NDArray[np.float16] | None = None,
    ) -> None:
        """Write rows: their ids, the inputs they were made of, vectors [B, E], and tokens [B, T, W] where kept."""
        stored = quantise(np.asarray(vectors, np.float32), self.dtype, self.scale)
        tokens = None if tokens is None else np.asarray(tokens, np.float16)
        checksums = None if tokens is None else list(map(tokens_checksum, stored, tokens))
        self.count += len(ids)
        if self._value_name == "path":
            values = list(map(without_secrets, values))
        arrays = iter(self._arrays)
        if self._rows is not None:
            self._rows.append(ids, values, stored, checksums)
        else:
            next(arrays).append(stored)
            of_tokens: Sequence[int | None] = checksums or [None] * len(ids)
            rows = zip(ids, values, of_tokens, strict=True)
            self._texts["ids.jsonl"].writelines(self._line(*row) for row in rows)
        if tokens is not None:
            next(arrays).append(tokens)

    def _line(self, row_id: str, value: str, checksum: int | None) -> str:
        row: dict[str, Any] = {"id": row_id, "status": "ok"}
        if self._value_name == "text" or value != row_id:
            row[self._value_name] = value
        if checksum is not None:
            row[TOKENS_CHECKSUM] = checksum
        return json.dumps(row, ensure_ascii=False) + "\n"

    def fail(self, row_id: str, reason: str) -> None:
        """Record an input that has no vector."""
        self.failed += 1
        self._text("errors.jsonl").write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")

    def complete(self, meta: dict[str, Any]) -> None:
        """Write what belongs at the end, and have the disk hold all of it."""
        self._text("meta.json").write(json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
        if self._rows is not None:
            self._rows.finish()
        for array in self._arrays:
            array.finish(self.count)
        self.close()
        names = sorted(path.name for path in self.folder.iterdir())
        for name in names:
            with (self.folder / name).open("rb") as written:
                os.fsync(written.fileno())
        write_whole(self.folder / COMPLETE, json.dumps(names))

    def close(self) -> None:
        """Close the files, complete or not."""
        with ExitStack() as stack:  # all of them, whatever one says
            for file in (*self._texts.values(), *self._arrays, self._rows):
                if file is not None:
                    stack.callback(file.close)

    def finish(self, meta: dict[str, Any]) -> None:
        """Complete the files and give them their names."""
        self.complete(meta)
        publish(self.folder, self.out)
        shutil.rmtree(self.folder)

    def _place(self, name: str) -> Path:
        return self.folder / sidecar(self.out, name).name

    def _text(self, name: str) -> IO[str]:
        if name not in self._texts:
            # A name that is no Unicode is written as the JSON escape that reads back as the same name.
            self._texts[name] = self._place(name).open("w", encoding="utf-8", errors="backslashreplace")
        return self._texts[name]


class _NpyFile:
    """A `.npy` that grows; its header has a fixed length, so that it can be completed when the rows are counted."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file, self._shape, self._dtype = path.open("wb"), shape, dtype
        self._file.write(self._header(0))

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def finish(self, count: int) -> None:
        self._file.seek(0)
        self._file.write(self._header(count))

    def close(self) -> None:
        self._file.close()

    def _header(self, count: int) -> bytes:
        fields = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': {(count, *self._shape)}, }}"
        prefix = b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little")
        return prefix + fields.ljust(NPY_HEADER_BYTES - 11).encode() + b"\n"


class _ParquetRows:
    """A Parquet file whose row groups have the same size, however many rows come at once."""

    def __init__(self, path: Path, width: int, dtype: np.dtype[Any], value_name: str, with_tokens: bool) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        vector = pa.list_(pa.from_numpy_dtype(dtype), width)
        columns = [("id", pa.string()), ("vector", vector), (value_name, pa.string())]
        if with_tokens:
            columns.append((TOKENS_CHECKSUM, pa.uint32()))
        self._schema = pa.schema(columns)
        # Vectors do not compress, and repeat no values that a dictionary could name.
        self._file = ParquetWriter(
            path, self._schema, use_dictionary=False, compression={"id": "snappy", value_name: "snappy"}
        )
        self._width = width
        self._group = max(1, ROW_GROUP_BYTES // (width * dtype.itemsize))
        self._waiting: list[Any] = []
        self._rows = 0

    def append(
        self, ids: Sequence[str], values: Sequence[str], vectors: NDArray[Any], checksums: list[int] | None
    ) -> None:
        import pyarrow as pa

        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._width)
        names, inputs = (pa.array(map(to_unicode, texts), pa.string()) for texts in (ids, values))
        more = [] if checksums is None else [pa.array(checksums, pa.uint32())]
        self._waiting.append(pa.record_batch([names, lists, inputs, *more], schema=self._schema))
        self._rows += len(ids)
        while self._rows >= self._group:
            self._write(self._group)

    def _write(self, count: int) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self._waiting, self._schema)
        self._file.write_table(table.slice(0, count), row_group_size=count)
        self._waiting = table.slice(count).to_batches()
        self._rows -= count

    def finish(self) -> None:
        if self._rows:
            self._write(self._rows)

    def close(self) -> None:
        self._file.close()
