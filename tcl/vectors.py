"""Vectors on disk: what `tcl embed` writes and `tcl search` reads. Imports no torch.

    vecs.npy            [N, E] of float32, float16 or int8, or [N, ceil(E / 8)] of packed bits; see `tcl.quantise`
    vecs.ids.jsonl      line i names row i: {"id", "status": "ok"}, and the text, or the path where that is not the id
    vecs.errors.jsonl   inputs without a vector: {"id", "reason"}; only when there are any
    vecs.tokens.npy     float16 [N, T, W], the image encoder's last states; only when they were asked for
    vecs.meta.json      model hash, preprocessing, backend, precision, counts

With the suffix `.parquet` one file with the columns `id`, `vector`, and `text` or `path`, takes the place of the first
two. The file of vectors gets its name last, so vectors that are there are complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tcl.atomic import write_whole
from tcl.errors import UsageError
from tcl.quantise import quantise, stored_type, stored_width

SUFFIXES = (".npy", ".parquet")
NPY_HEADER_BYTES = 128
COMPLETE = "complete.json"  # lists the finished files of a folder; written last
ROW_GROUP_BYTES = 32 << 20  # of vectors in a Parquet row group; as much is held in memory while writing


def sidecar(out: Path, name: str) -> Path:
    """The file beside the vectors: `sidecar(vecs.npy, "ids.jsonl")` is `vecs.ids.jsonl`."""
    return out.with_name(f"{out.stem}.{name}")


def partial_folder(out: Path) -> Path:
    """Where the job that makes `out` works: `vecs.npy.partial`."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, restart: bool = False, continued: bool = False) -> None:
    """Can vectors be written to `out`? Creates its folder.

    Args:
        out: of the vectors.
        restart: what is there may be replaced.
        continued: a job that may replace it was begun.

    Raises:
        UsageError: wrong suffix; `out` exists and may not be replaced; or its folder is not writable.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: vectors are written as .npy or .parquet", hint=f"for example --out {out.stem}.npy")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="choose another name")
    # Vectors of the other format share their sidecar files, so they are in the way too.
    for path in (out, *(out.with_suffix(suffix) for suffix in SUFFIXES), *file_names(out)):
        if path.exists() and not restart and not continued:
            raise UsageError(f"{path}: exists", hint="choose another name, or add --restart to replace it")
    check_folder(out)


def check_folder(out: Path) -> None:
    """Create the folder that `out` is to be in, and see whether it can be written to.

    Raises:
        UsageError: it cannot.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}", hint="choose another folder") from error


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
            self._rows = _ParquetRows(self.folder / out.name, width, kind, value_name)
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
        self.count += len(ids)
        arrays = iter(self._arrays)
        if self._rows is not None:
            self._rows.append(ids, values, stored)
        else:
            next(arrays).append(stored)
            self._texts["ids.jsonl"].writelines(self._line(*row) for row in zip(ids, values, strict=True))
        if tokens is not None:
            next(arrays).append(tokens)

    def _line(self, row_id: str, value: str) -> str:
        row = {"id": row_id, "status": "ok"}
        if self._value_name == "text" or value != row_id:
            row[self._value_name] = value
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

    def __init__(self, path: Path, width: int, dtype: np.dtype[Any], value_name: str) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        vector = pa.list_(pa.from_numpy_dtype(dtype), width)
        self._schema = pa.schema([("id", pa.string()), ("vector", vector), (value_name, pa.string())])
        # Vectors do not compress, and repeat no values that a dictionary could name.
        self._file = ParquetWriter(
            path, self._schema, use_dictionary=False, compression={"id": "snappy", value_name: "snappy"}
        )
        self._width = width
        self._group = max(1, ROW_GROUP_BYTES // (width * dtype.itemsize))
        self._waiting: list[Any] = []
        self._rows = 0

    def append(self, ids: Sequence[str], values: Sequence[str], vectors: NDArray[Any]) -> None:
        import pyarrow as pa

        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._width)
        names, inputs = (
            pa.array([text.encode("utf-8", "backslashreplace") for text in texts], pa.binary()).cast(pa.string())
            for texts in (ids, values)
        )
        self._waiting.append(pa.record_batch([names, lists, inputs], schema=self._schema))
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


def publish(folder: Path, out: Path) -> None:
    """Move the files that `VectorWriter.complete` left in `folder` to their place, the vectors last.

    What was there before gives way. May be called again after it was killed at any point.
    """
    if (folder / out.name).exists():  # else the last one has moved already
        names = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        # From here on, and until the last rename, there are no vectors.
        for suffix in SUFFIXES:
            out.with_suffix(suffix).unlink(missing_ok=True)  # its sidecar files are about to be replaced
        for path in file_names(out):
            if (folder / path.name).exists():
                (folder / path.name).replace(path)
            elif path.name not in names:
                path.unlink(missing_ok=True)  # of an earlier run
    sync_folder(out.parent)


def read_meta(out: Path) -> dict[str, Any]:
    """What belongs to vectors that `tcl embed` has just finished."""
    meta: dict[str, Any] = json.loads(sidecar(out, "meta.json").read_text(encoding="utf-8"))
    return meta


def file_names(out: Path) -> list[Path]:
    """Every file that belongs to the vectors, in the order in which they get their names."""
    return [*(sidecar(out, name) for name in ("ids.jsonl", "errors.jsonl", "tokens.npy", "meta.json")), out]


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that cannot
        pass
    finally:
        os.close(descriptor)
