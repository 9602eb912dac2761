"""One row of a source, whatever its kind: its images, its texts, and where it stands."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

from tcl.data.scenes import scenes
from tcl.errors import DataError
from tcl.files.remote import is_url


class Stored(NamedTuple):
    """An image inside a shard or a table.

    Args:
        name: what its place calls it: the member's name, the path beside the bytes; empty where it has none.
        reference: see `tcl.data.storage.parquet_cells.open_image`.
    """

    name: str
    reference: str


class Skipped(NamedTuple):
    """Something that gives no record: where it stands, and why."""

    place: str
    reason: str


class Record(NamedTuple):
    """A row.

    Args:
        file: which file it stands in, as the source names it; of a folder the image.
        place: where in that file; may be empty.
        key: how its owner knows it where it has no id: the number of the row, the key of a shard's sample, the name in
            a folder.
        row: an object, unless the file is wrong; images are paths and URLs, or `Stored`.
        base: what relative paths of images start from; empty where they are references.
        problem: why its texts cannot be trusted; empty as a rule.
    """

    file: str
    place: str
    key: str
    row: Any
    base: str
    problem: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.file} {self.place}".rstrip()

    def reference(self, image: str) -> str:
        """What opens an image that the row names: normalised, if it is a path."""
        found = resolve(image, self.base)
        return os.path.normpath(found) if os.path.isabs(found) else found

    def texts(self, keys: Sequence[str]) -> list[str]:
        """The texts of the first of these columns that has any; what is no text in a list of them is empty."""
        value = first_value(self.row, keys)
        if value is None:
            return []
        return [_text(item) for item in value] if isinstance(value, list) else [text] if (text := _text(value)) else []


def first_value(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """What the first of these columns holds that is not empty; None where all are.

    Where a row has none of the columns, it counts whatever the case of its names.
    """
    for key in keys:
        if (value := row.get(key)) not in (None, "", []):
            return value
    if not row.keys().isdisjoint(keys):
        return None
    lower = {str(name).lower(): value for name, value in row.items()}
    return next((lower[key.lower()] for key in keys if lower.get(key.lower()) not in (None, "", [])), None)


def unreadable(name: str, error: OSError) -> DataError:
    """What is said of a source that cannot be read; errors of a remote name it themselves."""
    named = error.strerror is None and (is_url(name) or name in str(error))
    text = str(error) if named else f"cannot read {error.filename or name}: {error.strerror or error}"
    return DataError(text, hint="check that it can be reached and may be read")


def resolve(image: str, base: str) -> str:
    """An image as a file in `base` names it: below the base, absolute, a URL or a reference."""
    if not image or not base or image.startswith(scenes.PREFIX) or is_url(image):
        return image
    if is_url(base) and not image.startswith("/"):
        scheme, mark, path = base.partition("://")
        return scheme + mark + posixpath.normpath(posixpath.join(path, image))
    return os.path.join(base, image)


def _text(value: Any) -> str:
    """A text, or a number as it is written; empty for what is neither."""
    if value is None or isinstance(value, dict | list) or value != value:  # the last is NaN
        return ""
    return str(value)
