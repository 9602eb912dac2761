"""The JSON lines that a run writes, and which of their values are numbers to draw."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from tcl.files.json_object import Malformed, Shape, parse_object

RECORD = {"step": int}


def read_records(path: Path, shape: Mapping[str, Shape] = RECORD) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none if it is missing. Lines that are cut short or of another shape are left out."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(Malformed):
            records.append(parse_object(line, shape))
    return records


def is_figure(value: object) -> TypeGuard[int | float]:
    """A number that can be drawn and compared, which a flag, an infinity and a NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e100 < value < 1e100
