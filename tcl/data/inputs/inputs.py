"""The list of what `tcl embed` works on, in flat memory and in a file that other processes map."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa

from tcl.data.scenes import scenes
from tcl.data.storage.parquet_cells import container_of
from tcl.data.strings import Strings
from tcl.errors import DataError, reason_of
from tcl.files.atomic import atomic_file
from tcl.files.remote import is_url

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
        saved_absent: of such inputs what `absent` says.
    """

    kind: Kind
    ids: Strings
    values: Strings
    root: Path
    warnings: tuple[str, ...] = ()
    origin: str = ""
    saved_stamp: str | None = None
    saved_absent: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.ids)

    def location(self, row: int) -> str:
        """What to open for image `row`."""
        return locate(self.values[row], self.root)

    def place(self, row: int) -> str:
        """What image `row` is in: a shard, a table, or a folder, of a relative path `root`; empty where it is none."""
        value = self.values[row]
        location = locate(value, self.root)
        if self.kind == "text" or location != str(self.root / value):
            return ""
        if container := container_of(location):
            return container
        return os.path.dirname(value) if os.path.isabs(value) else str(self.root)

    @property
    def stamp(self) -> str:
        """Changes when ids, texts or images do: of local images by size and time, which are looked at once."""
        return self._looked[0]

    @property
    def absent(self) -> frozenset[str]:
        """Folders, shards and tables that were not there at that time."""
        return self._looked[1]

    @cached_property
    def _looked(self) -> tuple[str, frozenset[str]]:
        return _look(self) if self.saved_stamp is None else (self.saved_stamp, self.saved_absent)

    def slice(self, start: int, stop: int) -> Inputs:
        """Rows from `start` up to `stop`; their stamp changes when any row of the whole does."""
        stamp = hashlib.sha256(f"{self.stamp} {start} {stop}".encode()).hexdigest()
        ids = self.ids.part(start, stop)
        values = ids if self.values is self.ids else self.values.part(start, stop)
        return replace(self, ids=ids, values=values, saved_stamp=stamp, saved_absent=self.absent)

    def save(self, path: Path) -> None:
        """Write the list, for other processes and for later.

        Raises:
            OSError: it cannot be written.
        """
        columns = {"id": self.ids.column}
        if self.values is not self.ids:
            columns["value"] = self.values.column
        about = {
            "kind": self.kind,
            "root": str(self.root.absolute()),
            "stamp": self.stamp,
            "absent": [os.path.abspath(place) for place in sorted(self.absent)],
            "warnings": self.warnings,
        }
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        with (
            atomic_file(path) as temporary,
            temporary.open("wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)

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
            root, stamp, absent = Path(about["root"]), about["stamp"], frozenset(about["absent"])
            return cls(about["kind"], ids, values, root, warnings, saved_stamp=stamp, saved_absent=absent)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or reason_of(error)
            raise DataError(f"cannot read the list of inputs {path}: {reason}", hint="start anew") from error


def locate(image: str, root: Path) -> str:
    """An image as it can be opened: a path, a URL, a member of a shard, a cell of a table, or a `scenes:` reference."""
    return image if not image or image.startswith(scenes.PREFIX) or is_url(image) else str(root / image)


def why_gone(place: str) -> str:
    """Why nothing can be read from a folder or file; empty where something may."""
    try:
        if not stat.S_ISDIR(os.stat(place).st_mode):
            return ""
        with os.scandir(place) as entries:
            return "" if next(entries, None) else "is empty now"
    except OSError as error:
        if isinstance(error, PermissionError) and os.access(place, os.X_OK):  # its files can be read, not its list
            return ""
        return f"has gone: {error.strerror}"
    except ValueError:  # a null byte
        return "is no path"


def _look(inputs: Inputs) -> tuple[str, frozenset[str]]:
    """The stamp of inputs, and what they are in that is not there."""
    digest = hashlib.sha256(f"{inputs.kind}\n{inputs.origin}\n".encode())
    container_stamp, gone, absent = cache(_file_stamp), cache(why_gone), set()
    root = str(inputs.root)
    for row, (row_id, value) in enumerate(zip(inputs.ids, inputs.values, strict=True)):
        digest.update(f"{row_id}\0{value}\0".encode())
        if inputs.kind == "image" and value and not value.startswith(scenes.PREFIX) and not is_url(value):
            location = os.path.join(root, value)
            container = location.rpartition("!")[0]  # of a member or a cell
            found = (container and container_stamp(container)) or _file_stamp(location)
            digest.update(f"{found}\0".encode())
            if not found and gone(place := inputs.place(row)):
                absent.add(place)
    return digest.hexdigest(), frozenset(absent)


def _file_stamp(path: str) -> str:
    """Size and time of a file; empty where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
