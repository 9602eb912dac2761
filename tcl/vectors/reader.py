"""The vectors that `tcl embed` wrote, as they are read: one file or a folder of parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.errors import DataError, UsageError
from tcl.vectors.files import AGAIN, SUFFIXES, file_names, read_meta, sidecar, tokens_checksum
from tcl.vectors.parts import Part, belonging, map_npy, open_part
from tcl.vectors.products import StoredVectors

FOLDER_META = "meta.json"  # of a folder of parts; written last
OTHER_TOKENS = "put back what `tcl embed --keep-tokens` wrote, or embed again; without it, images are opened instead"


class VectorFile:
    """Vectors, their ids and what is known about them; made by `VectorFile.open`.

    Attributes:
        path: of the file or folder.
        meta: content of its `meta.json`.
        parts: the files, in order.
        dim: width E of a vector.
    """

    def __init__(self, path: Path, meta: dict[str, Any], parts: Sequence[Part], codes: Sequence[StoredVectors]) -> None:
        self.path, self.meta, self.parts = path, meta, parts
        self.dim = codes[0].dim
        self._codes = codes
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    @classmethod
    def open(cls, path: Path) -> VectorFile:
        """Open `.npy` or `.parquet` vectors, or a folder of such; nothing is read into memory yet.

        Raises:
            UsageError: no such file, not vectors, or a file that belongs to them is missing.
            DataError: damaged, or ids and vectors differ in number.
        """
        if path.is_dir():
            return cls._open_folder(path)
        meta, part = _open_part(path)
        return cls(path, meta, [part], [_code(part, meta)])

    @classmethod
    def _open_folder(cls, folder: Path) -> VectorFile:
        file = folder / FOLDER_META
        if not file.is_file():
            raise UsageError(
                f"{folder}: not a folder of vectors, or not complete: no {FOLDER_META}",
                hint="the command of `tcl embed` that makes it completes it",
            )
        meta = read_meta(file)
        names = [(entry["file"], entry["count"]) for entry in meta.get("parts") or ()]
        parts, codes = [], []
        for name, count in names:
            own, part = _open_part(folder / Path(name).name)
            if own.get("model_hash") != meta.get("model_hash") or len(part) != count:
                raise DataError(f"{part.path}: does not belong to {file}", hint=AGAIN)
            parts.append(part)
            codes.append(_code(part, meta | own))
        if not parts or len({code.dim for code in codes}) != 1:
            raise DataError(f"{file}: its parts differ in width, or there are none", hint=AGAIN)
        return cls(folder, meta, parts, codes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def kind(self) -> str:
        """What was embedded: `image` or `text`."""
        return "text" if self.meta.get("kind") == "text" else "image"

    @property
    def files(self) -> list[Path]:
        """The files of vectors."""
        return [part.path for part in self.parts]

    @property
    def belongings(self) -> list[Path]:
        """Every file that belongs to the vectors and is there, theirs included."""
        own = [file for path in self.files for file in file_names(path)]
        folder = [self.path / FOLDER_META] if self.path.is_dir() else []
        return [file for file in [*own, *folder] if file.exists()]

    @property
    def rows_at_once(self) -> int:
        """Rows that products with queries are fastest with."""
        return self._codes[0].rows_at_once

    def check_model(self, model_hash: str) -> None:
        """Vectors of different models cannot be compared.

        Raises:
            UsageError: these were made by another model.
        """
        check_hash(str(self.path), str(self.meta.get("model_hash")), model_hash)

    def blocks(self, rows: int, first: int = 0) -> Iterator[tuple[int, StoredVectors, NDArray[Any]]]:
        """Every row from `first` on: its number, how to read what follows, and at most `rows` of them as stored."""
        for begin, part, code in zip(self._starts.tolist(), self.parts, self._codes, strict=False):
            start = max(begin, first)
            if start < begin + len(part):
                for stored in part.blocks(rows, start - begin):
                    yield start, code, stored
                    start += len(stored)

    def floats(self, rows: int, first: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Every row from `first` on: its number, and at most `rows` vectors from there as float32 [n, E].

        Raises:
            DataError: a value is not finite.
        """
        for start, code, stored in self.blocks(rows, first):
            vectors = code.floats(stored)
            self.check_finite(start, vectors)
            yield start, vectors

    def take(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Some vectors as float32 [n, E], in the order asked for.

        Raises:
            DataError: a value is not finite.
        """
        found = np.empty((len(rows), self.dim), np.float32)
        for number, (places, own) in self._by_part(rows).items():
            vectors = self._codes[number].floats(self.parts[number].take(own))
            for row, vector in zip(own, vectors, strict=True):
                self.check_finite(int(self._starts[number]) + row, vector[None])
            found[places] = vectors
        return found

    def record(self, row: int) -> dict[str, Any]:
        """What is known about a row: its id, and text or path where there is one."""
        number = self._part_of(row)
        return self.parts[number].record(row - int(self._starts[number]))

    def tokens(self, rows: Sequence[int]) -> NDArray[np.float16] | None:
        """The image encoder's last states of some rows [n, T, W]; None where they were not kept.

        Raises:
            DataError: their file is damaged, or they are not those that were kept with these vectors.
        """
        if not rows or not all(sidecar(path, "tokens.npy").is_file() for path in self.files):
            return None
        chosen: list[Any] = [None] * len(rows)
        for number, (places, own) in self._by_part(rows).items():
            for place, tokens in zip(places, _part_tokens(self.parts[number], own), strict=True):
                chosen[place] = tokens
        return np.stack(chosen)

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """Of all vectors [E].

        Raises:
            DataError: there are none, or a value is not finite.
        """
        total = np.zeros(self.dim)
        for start, code, stored in self.blocks(self.rows_at_once):
            part = code.total(stored)
            if not np.isfinite(part).all():
                self.check_finite(start, code.floats(stored))
            total += part
        return (total / max(len(self), 1)).astype(np.float32)

    def check_finite(self, start: int, vectors: NDArray[np.float32]) -> None:
        """Refuse values that are not finite.

        Raises:
            DataError: naming the first row that has one.
        """
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(f"{self.path}: row {start + int(np.argmin(finite))} is not finite", hint="embed again")

    def _part_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _by_part(self, rows: Sequence[int]) -> dict[int, tuple[list[int], list[int]]]:
        """Of each part that holds any: their places in `rows`, and their rows in the part."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for place, row in enumerate(rows):
            number = self._part_of(row)
            places, own = found.setdefault(number, ([], []))
            places.append(place)
            own.append(row - int(self._starts[number]))
        return found


def check_hash(name: str, own: str, model_hash: str) -> None:
    """Compare the model that made `name` with the one in use.

    Raises:
        UsageError: they differ.
    """
    if own != model_hash:
        raise UsageError(
            f"{name}: vectors of another model ({own[:12]}, this one is {model_hash[:12]})",
            hint="name the model they were made with by --model, or embed again with this one",
        )


def _part_tokens(part: Part, rows: Sequence[int]) -> list[NDArray[np.float16]]:
    """The tokens of some rows of a file, each compared with what the row says of them."""
    path = sidecar(part.path, "tokens.npy")
    tokens = map_npy(path)
    if tokens.ndim != 3 or len(tokens) != len(part):
        raise DataError(f"{path}: holds {tokens.shape}, not the tokens of {len(part)} images", hint=OTHER_TOKENS)
    found = [np.array(tokens[row]) for row in rows]
    for row, own, vector in zip(rows, found, part.take(rows), strict=True):
        if part.tokens_checksum(row) != tokens_checksum(vector, own):
            raise DataError(f"{path}: row {row} is not what was kept with its vector", hint=OTHER_TOKENS)
    return found


def _open_part(path: Path) -> tuple[dict[str, Any], Part]:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: not a file of vectors", hint="give the .npy or .parquet that `tcl embed` wrote")
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint=f"make it with `tcl embed SOURCE --out {path}`")
    meta = read_meta(belonging(path, "meta.json"))
    part = open_part(path)
    if not part.width:
        raise DataError(f"{path}: holds vectors without numbers", hint=AGAIN)
    if meta.get("count") != len(part):
        counts = f"vectors: {len(part)}, the count in its meta.json: {meta.get('count')}"
        raise DataError(f"{path}: files do not belong together: {counts}", hint=AGAIN)
    return meta, part


def _code(part: Part, meta: dict[str, Any]) -> StoredVectors:
    """How the numbers of a part are to be read.

    Raises:
        DataError: they are no vectors, or `meta` does not say what they mean.
    """
    if part.dtype in (np.float32, np.float16):
        return StoredVectors(part.dtype.name, part.width)
    scale, dim = np.asarray(meta.get("scale") or (), np.float32), meta.get("dim") or 0
    if part.dtype == np.int8 and scale.shape == (part.width,) and np.isfinite(scale).all():
        return StoredVectors("int8", part.width, scale)
    if part.dtype == np.uint8 and -(-dim // 8) == part.width:
        return StoredVectors("binary", dim)
    raise DataError(f"{part.path}: holds {part.dtype} of width {part.width}, and its meta.json does not say what for")
