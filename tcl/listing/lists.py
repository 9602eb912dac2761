"""The list of what `tcl embed` works on, in flat memory and in a file that other processes map. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa

from tcl.data import scenes
from tcl.data.remote import is_url
from tcl.errors import DataError
from tcl.listing.strings import Strings

Kind = Literal["image", "text"]
_ABOUT = b"tcl"


@dataclass(frozen=True)
class Inputs:
    """Images or texts, in the order of the source.

    Attributes:
        kind: which of the two.
        ids: one per input, each once; how the source's owner knows it.
        values: texts, or images: paths below `root`, or what else `locate` knows.
        root: folder that relative image paths start from.
        warnings: what of the source could not be read, one line each.
        origin: changes when a remote file does that the inputs stand in.
        saved_stamp: the stamp of inputs that were saved.
    """

    kind: Kind
    ids: Strings
    values: Strings
    root: Path
    warnings: tuple[str, ...] = ()
    origin: str = ""
    saved_stamp: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def location(self, row: int) -> str:
        """What to open for image `row`."""
        return locate(self.values[row], self.root)

    @cached_property
    def stamp(self) -> str:
        """Changes when ids, texts or images do: of local images by size and time, which are looked at once."""
        return self.saved_stamp or _stamp(self)

    def slice(self, start: int, stop: int) -> Inputs:
        """Rows from `start` up to `stop`; their stamp changes when any row of the whole does."""
        stamp = hashlib.sha256(f"{self.stamp} {start} {stop}".encode()).hexdigest()
        ids = self.ids.part(start, stop)
        values = ids if self.values is self.ids else self.values.part(start, stop)
        return replace(self, ids=ids, values=values, saved_stamp=stamp)

    def save(self, path: Path) -> None:
        """Write the list, for other processes and for later.

        Raises:
            OSError: it cannot be written.
        """
        columns = {"id": self.ids.column}
        if self.values is not self.ids:
            columns["value"] = self.values.column
        about = {"kind": self.kind, "root": str(self.root.absolute()), "stamp": self.stamp, "warnings": self.warnings}
        # JSON keeps a path that is no Unicode.
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        temporary = path.with_name(f".{path.name}.partial")
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def open(cls, path: Path) -> Inputs:
        """Map a list that was saved into memory: the same rows, with the same stamp.

        Raises:
            DataError: it is not there, or damaged.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate()
            about = json.loads(table.schema.metadata[_ABOUT])
            ids = Strings(table["id"])
            values = Strings(table["value"]) if "value" in table.column_names else ids
            warnings = tuple(about["warnings"])
            return cls(about["kind"], ids, values, Path(about["root"]), warnings, saved_stamp=about["stamp"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DataError(f"cannot read the list of inputs {path}: {reason}", hint="start anew") from error


def locate(image: str, root: Path) -> str:
    """An image as it can be opened: a path, a URL, a member of a shard, a cell of a table, or a `scenes:` reference."""
    return image if not image or image.startswith(scenes.PREFIX) or is_url(image) else str(root / image)


def _stamp(inputs: Inputs) -> str:
    digest = hashlib.sha256(f"{inputs.kind}\n{inputs.origin}\n".encode("utf-8", "surrogatepass"))
    container_stamp = cache(_file_stamp)
    root = str(inputs.root)
    for row_id, value in zip(inputs.ids, inputs.values, strict=True):
        digest.update(f"{row_id}\0{value}\0".encode("utf-8", "surrogatepass"))
        if inputs.kind == "image" and value and not value.startswith(scenes.PREFIX) and not is_url(value):
            location = os.path.join(root, value)
            container = location.rpartition("!")[0]  # of a member or a cell
            found = (container and container_stamp(container)) or _file_stamp(location)
            digest.update(f"{found}\0".encode())
    return digest.hexdigest()


def _file_stamp(path: str) -> str:
    """Size and time of a file; empty where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
