"""Which columns of a row count: those that the user named, else those with a usual name, whatever its case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.errors import DataError, UsageError

if TYPE_CHECKING:
    from tcl.config.recipe import DataConfig

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path", "url", "image_url")
"""Names under which a row may hold its image, a path or URL; the first one that it has a value for counts."""

CELL_COLUMNS = ("jpg", "jpeg", "png", "webp")
"""Names under which img2dataset's Parquet files hold the bytes of an image; they count before its URL."""

TEXT_COLUMNS = ("caption", "captions", "text", "sentence", "query", "title")
"""Names under which a row may hold its text or list of texts; likewise."""


@dataclass(frozen=True)
class Columns:
    """What is wanted of a source.

    Args:
        image: column of paths, URLs or bytes; None stands for the usual names.
        text: column of texts; likewise.
        id: column of ids; None stands for `id`.
        kind: `pair` for images with texts, `image` or `text` for these alone, `row` for all that there is.
        condition: column and value that rows must have; `records` takes it from the source.
    """

    image: str | None = None
    text: str | None = None
    id: str | None = None
    kind: Literal["pair", "image", "text", "row"] = "pair"
    condition: tuple[str, str] | None = None

    @classmethod
    def of(cls, data: DataConfig) -> Columns:
        """Those that a recipe names."""
        return cls(data.image_column, data.text_column)

    @cached_property
    def image_keys(self) -> tuple[str, ...]:
        """Columns of images."""
        return (self.image,) if self.image else IMAGE_COLUMNS

    @cached_property
    def text_keys(self) -> tuple[str, ...]:
        """Columns of texts."""
        return (self.text,) if self.text else TEXT_COLUMNS

    @property
    def extra_keys(self) -> tuple[str, ...]:
        """Columns that count beside images and texts."""
        own = ("image_id",) if self.kind == "pair" else (self.id or "id",)
        return (*own, self.condition[0]) if self.condition else own

    def kind_of(self, names: Iterable[str], place: str) -> Literal["image", "text"]:
        """The kind of inputs that a row with these columns gives.

        Raises:
            UsageError: the user named a column of each kind.
        """
        if self.image and self.text:
            raise UsageError(f"{place}: images or texts?", hint="both columns are named; add --kind")
        if self.image or self.text:
            return "image" if self.image else "text"
        exactly = set(names)
        if exactly & set(IMAGE_COLUMNS):
            return "image"
        if exactly & set(TEXT_COLUMNS[:-1]):  # before an image whose case is another, as in `URL,text`
            return "text"
        return "image" if among(IMAGE_COLUMNS + CELL_COLUMNS, exactly) else "text"

    def check(self, names: Sequence[str], place: str) -> None:
        """Look whether a table has the columns.

        Raises:
            UsageError: it lacks one that the user named, or has no header, or is no list of inputs.
            DataError: it has no column of images or of captions.
        """
        found = ", ".join(names) or "none"
        named = {"image": self.kind != "text" and self.image, "text": self.kind != "image" and self.text, "id": self.id}
        for option, name in named.items():
            if name and not among((name,), names):
                raise UsageError(f"{place}: no column {name} among {found}", hint=f"check --{option}-column")
        if self.kind == "row":
            return
        wanted = {"image": self.image_keys, "text": self.text_keys}
        missing = [kind for kind, keys in wanted.items() if self.kind in (kind, "pair") and not among(keys, names)]
        if not missing:
            return
        if any(name.lower().endswith(tuple(IMAGE_SUFFIXES)) for name in names):
            raise UsageError(
                f"{place}: its first line is a row, and no header: {found}",
                hint="write a line with the names of the columns before it, as image,caption",
            )
        hint = f"name it {', '.join(wanted[missing[0]])}, or say which it is by --image-column or --text-column"
        if self.kind == "pair":
            what = "caption" if missing[0] == "text" else "image"
            raise DataError(f"{place}: no {what} column; its columns are {found}", hint=hint)
        what = self.kind if among(IMAGE_COLUMNS + TEXT_COLUMNS, names) else "image or text"
        raise UsageError(f"{place}: no {what} column among {found}", hint=hint)

    def cells(self, found: Mapping[str, str]) -> list[str]:
        """The columns of images whose bytes stand in the table.

        Args:
            found: its columns with their types, of `parquet_columns`.
        """
        stored = [name for name, kind in found.items() if kind == "bytes"]
        if self.kind == "row":
            return stored
        if self.kind == "text":
            return []
        usual = (*IMAGE_COLUMNS[:5], *CELL_COLUMNS, *IMAGE_COLUMNS[5:])
        usable = [name for name in found if name in stored or name.lower() not in CELL_COLUMNS]
        name = among(self.image_keys if self.image else usual, usable)
        return [name] if name in stored else []

    def read(self, found: Mapping[str, str], cells: Sequence[str]) -> list[str]:
        """The columns of a table that are read, and of images in it what they are called.

        Args:
            found: as for `cells`.
            cells: what that gave.
        """
        keys = [*self.extra_keys]
        if self.kind != "image":
            keys += self.text_keys
        if self.kind != "text":
            keys += self.image_keys
        wanted = {key.lower() for key in keys}
        plain = [name for name, kind in found.items() if kind != "bytes"]
        used = plain if self.kind == "row" else [name for name in plain if name.lower() in wanted]
        return [*used, *(f"{name}.path" for name in cells)]

    def row_id(self, row: dict[str, Any]) -> str | None:
        """The id that a row gives itself."""
        value = row.get(self.id or "id")
        return None if value in (None, "") else str(value)


USUAL = Columns()
"""Images with texts, under the usual names."""


def among(keys: Sequence[str], names: Iterable[str]) -> str | None:
    """The first of the keys that is one of the names, as it is written there: exactly, else whatever its case."""
    exact = {name: name for name in names}
    for known in (exact, {name.lower(): name for name in exact}):
        for key in keys:
            if found := known.get(key if known is exact else key.lower()):
                return found
    return None
