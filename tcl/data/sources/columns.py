"""Which columns of a table hold what `tcl embed` is pointed at, and the rows they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tcl.data.tables.formats import CAPTION_KEYS, IMAGE_KEYS
from tcl.errors import UsageError

IMAGE_COLUMNS = (*IMAGE_KEYS, "url", "image_url")
TEXT_COLUMNS = (*CAPTION_KEYS, "sentence", "query")


class InputRow(NamedTuple):
    """One input.

    Args:
        row_id: how its owner knows it; other inputs may have the same.
        value: text or image.
        place: where it stands, for errors.
        given: the source itself says what its id is.
    """

    row_id: str
    value: str
    place: str
    given: bool = False


@dataclass(frozen=True)
class Columns:
    """Columns that the user named; None stands for the usual names.

    Args:
        image: of paths, URLs or bytes.
        text: of sentences.
        id: of ids.
        condition: column and value that rows must have.
    """

    image: str | None = None
    text: str | None = None
    id: str | None = None
    condition: tuple[str, str] | None = None

    @property
    def image_keys(self) -> tuple[str, ...]:
        return (self.image,) if self.image else IMAGE_COLUMNS

    @property
    def text_keys(self) -> tuple[str, ...]:
        return (self.text,) if self.text else TEXT_COLUMNS

    @property
    def look_into_json(self) -> bool:
        """Whether an image of a shard needs its `.json`."""
        return bool(self.id or self.condition)

    def keys(self, kind: str) -> tuple[str, ...]:
        return self.image_keys if kind == "image" else self.text_keys

    def kind_of(self, names: Iterable[str], place: str) -> str:
        """The kind of inputs that a row with these columns gives.

        Raises:
            UsageError: the user named a column of each kind.
        """
        if self.image and self.text:
            raise UsageError(f"{place}: images or texts?", hint="both columns are named; add --kind")
        if self.image or self.text:
            return "image" if self.image else "text"
        return "image" if set(IMAGE_COLUMNS) & set(names) else "text"

    def check(self, names: Sequence[str], kind: str, place: str) -> None:
        """Look whether a row has the columns.

        Raises:
            UsageError: it has not.
        """
        found = ", ".join(map(str, names)) or "none"
        keys = self.keys(kind)
        if not set(keys) & set(names):
            hint = f"name it {', '.join(keys)}, or say which it is by --image-column or --text-column"
            if len(keys) == 1:
                raise UsageError(f"{place}: no column {keys[0]} among {found}", hint=f"check --{kind}-column")
            what = kind if set(IMAGE_COLUMNS + TEXT_COLUMNS) & set(names) else "image or text"
            raise UsageError(f"{place}: no {what} column among {found}", hint=hint)
        if self.id and self.id not in names:
            raise UsageError(f"{place}: no column {self.id} among {found}", hint="check --id-column")

    def row_id(self, row: dict[str, Any]) -> str | None:
        """The id that a row gives itself."""
        value = row.get(self.id or "id")
        return None if value in (None, "") else str(value)

    def wants(self, row: dict[str, Any]) -> bool:
        """Whether a row meets the condition."""
        if self.condition is None:
            return True
        cell = row.get(self.condition[0])
        return cell is not None and str(cell) == self.condition[1]


def first_value(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """What the first of these columns holds that is not empty; None where all are."""
    return next((row[key] for key in keys if row.get(key) not in (None, "", [])), None)


def table_texts(row: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """The texts, or images, of a row: none, one, or those of a list."""
    value = first_value(row, keys)
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def several(row_id: str, values: Sequence[str], place: str, given: bool) -> Iterator[InputRow]:
    """One input per value, numbered where there are several."""
    for number, value in enumerate(values, 1):
        yield InputRow(row_id if len(values) == 1 else f"{row_id}#{number}", value, place, given)
