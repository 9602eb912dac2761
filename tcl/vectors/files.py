"""Vectors on disk: what `tcl embed` writes and `tcl search` reads.

    vecs.npy            [N, E] of float32, float16 or int8, or [N, ceil(E / 8)] of packed bits; see `tcl.vectors.dtypes`
    vecs.ids.jsonl      line i names row i: {"id", "status": "ok"}, and the text, or the path where that is not the id
    vecs.errors.jsonl   inputs without a vector: {"id", "reason"}; only when there are any
    vecs.tokens.npy     float16 [N, T, W], the image encoder's last states; only when they were asked for
    vecs.meta.json      model hash, preprocessing, backend, precision, counts

With the suffix `.parquet` one file with the columns `id`, `vector`, and `text` or `path`, takes the place of the first
two. Where there are tokens, each row also has `tokens_crc32`, which ties them to its vector. The file of vectors gets
its name last, so vectors that are there are complete.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, UsageError
from tcl.files.atomic import try_writing
from tcl.files.json_object import Malformed, read_object

SUFFIXES = (".npy", ".parquet")
AGAIN = "run `tcl embed` again"
COMPLETE = "complete.json"  # lists the finished files of a folder; written last
META = {
    "kind?": str,
    "count": int,
    "failed?": int,
    "dim?": int,
    "dtype?": str,
    "model_hash?": str,
    "root?": str,
    "scale?": [float],
    "token_shape?": [int],
    "recall_at_10?": float,
    "recall_queries?": int,
    "shard_rows?": int,
    "parts?": [{"file": str, "count": int}],
}
"""What a `meta.json` may say, as `tcl.files.json_object` checks it; of other members nothing depends on."""
TOKENS_CHECKSUM = "tokens_crc32"  # of a row: the name of `tokens_checksum`


def sidecar(out: Path, name: str) -> Path:
    """The file beside the vectors: `sidecar(vecs.npy, "ids.jsonl")` is `vecs.ids.jsonl`."""
    return out.with_name(f"{out.stem}.{name}")


def other_formats(out: Path) -> list[Path]:
    """Vectors of the same name that share the sidecar files of `out`."""
    return [out.with_suffix(suffix) for suffix in SUFFIXES if suffix != out.suffix]


def rivals(out: Path) -> list[Path]:
    """Those of `other_formats` that are there, and are vectors: a table of this name, perhaps the source, is none."""
    theirs = not out.exists() and sidecar(out, "meta.json").exists()
    return [path for path in other_formats(out) if path.exists()] if theirs else []


def partial_folder(out: Path) -> Path:
    """Where the job that makes `out` works: `vecs.npy.partial`."""
    return out.with_name(out.name + ".partial")


def tokens_checksum(vector: NDArray[Any], tokens: NDArray[np.float16]) -> int:
    """What a row says of its tokens: the CRC-32 of its vector, as stored, and of the tokens [T, W] behind it."""
    return zlib.crc32(tokens.tobytes(), zlib.crc32(vector.tobytes()))


def check_output(out: Path, restart: bool = False, continued: bool = False) -> None:
    """Can vectors be written to `out`? Creates its folder.

    Args:
        out: of the vectors.
        restart: what is there may be replaced.
        continued: a job that may replace it was begun.

    Raises:
        UsageError: wrong suffix; `out` exists and may not be replaced; vectors of the other format are there, which
            never may; or its folder is not writable.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: vectors are written as .npy or .parquet", hint=f"for example --out {out.stem}.npy")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="choose another name")
    for path in rivals(out):
        raise UsageError(
            f"{path}: exists, and shares its sidecar files with {out.name}",
            hint="choose another name, or move it away with the files beside it",
        )
    if out.exists() and not sidecar(out, "meta.json").exists():
        raise UsageError(f"{out}: exists, and is not the work of `tcl embed`", hint="choose another name")
    for path in () if restart or continued else (out, *file_names(out)):
        if path.exists():
            raise UsageError(f"{path}: exists", hint="choose another name, or add --restart to replace it")
    check_folder(out)


def check_folder(out: Path) -> None:
    """Create the folder that `out` is to be in, and see whether it can be written to.

    Raises:
        UsageError: it cannot.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try_writing(out.parent)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}", hint="choose another folder") from error


def publish(folder: Path, out: Path) -> None:
    """Move the files that `VectorWriter.complete` left in `folder` to their place, the vectors last.

    What was there before gives way. May be called again after it was killed at any point.
    """
    if (folder / out.name).exists():  # else the last one has moved already
        names = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))  # written a moment ago, or whole
        out.unlink(missing_ok=True)  # from here on, and until the last rename, there are no vectors
        for path in file_names(out):
            if (folder / path.name).exists():
                (folder / path.name).replace(path)
            elif path.name not in names:
                path.unlink(missing_ok=True)  # of an earlier run
    sync_folder(out.parent)


def meta_of(out: Path) -> dict[str, Any]:
    """What the `meta.json` beside vectors says; raises as `read_meta`."""
    return read_meta(sidecar(out, "meta.json"))


def read_meta(file: Path) -> dict[str, Any]:
    """Content of a `meta.json`, beside vectors or in a folder of parts.

    Raises:
        OSError: it cannot be read.
        DataError: it is damaged.
    """
    try:
        return read_object(file, META)
    except Malformed as error:
        raise DataError(f"{file}: damaged: {error}", hint=AGAIN) from error


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
