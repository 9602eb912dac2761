"""From rows as they stream in to columns in memory, and ids of which each is there once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import PurePosixPath
from typing import NamedTuple

from tcl.data.sources.folders import Progress
from tcl.data.strings import Strings
from tcl.errors import DataError

_CHUNK = 16384


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
    place: str = ""
    given: bool = False


def gather(rows: Iterable[InputRow], progress: Progress) -> tuple[Strings, Strings]:
    """Ids and values of rows; one and the same object when all are equal."""
    rest = iter(rows)
    ids, values, same = list[Strings](), list[Strings](), True
    while chunk := list(islice(rest, _CHUNK)):
        ids.append(Strings.of(row.row_id for row in chunk))
        if all(row.row_id == row.value for row in chunk):
            values.append(ids[-1])
        else:
            values.append(Strings.of(row.value for row in chunk))
            same = False
        progress(len(chunk))
    column = Strings.concatenated(ids)
    return column, column if same else Strings.concatenated(values)


def numbered(ids: Strings) -> Strings:
    """Ids of which the second of a name is called `NAME#2`, and so on."""
    while repeated := ids.repeated():
        ids = Strings.of(_numbered(ids, repeated))
    return ids


def _numbered(ids: Iterable[str], repeated: set[str]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for row_id in ids:
        if row_id in repeated:
            seen[row_id] += 1
            yield row_id if seen[row_id] == 1 else f"{row_id}#{seen[row_id]}"
        else:
            yield row_id


def qualified(ids: Strings, files: Sequence[tuple[str, int]]) -> Strings:
    """Ids of several files: where one is in two of them, each gets its file's name in front.

    Args:
        ids: as each file gives them.
        files: name and number of inputs of each.
    """
    if len(files) > 1 and ids.repeated():
        stems = [PurePosixPath(name).stem for name, _ in files]
        names = stems if len(set(stems)) == len(stems) else [name for name, _ in files]
        fronts = chain.from_iterable(repeat(name, count) for name, (_, count) in zip(names, files, strict=True))
        ids = Strings.of(f"{front}/{row_id}" for front, row_id in zip(fronts, ids, strict=True))
    return numbered(ids)


def refuse_repeats(source: str, ids: Strings, rows: Callable[[], Iterable[InputRow]]) -> None:
    """Ids that a source gives itself must differ.

    Args:
        source: as the user named it.
        ids: all of them.
        rows: reads the source again, to say where.

    Raises:
        DataError: two are equal.
    """
    repeated = ids.repeated()
    if not repeated:
        return
    seen: dict[str, InputRow] = {}
    for row in rows():
        if row.row_id in repeated and (first := seen.setdefault(row.row_id, row)).place != row.place:
            without = [each.place for each in (first, row) if not each.given]
            raise DataError(
                f"{source}: two inputs have the id {row.row_id}: {first.place} and {row.place}",
                hint=f"{without[0]} has none, and its number stands for it: give it one"
                if without
                else "give each its own, or name another column by --id-column",
            )
    raise DataError(f"{source}: two inputs have the id {min(repeated)}", hint="give each its own")
