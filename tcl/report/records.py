"""The JSON lines that a run writes, and which of their values are numbers to draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none if it is missing. Lines that were cut short are left out."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def is_figure(value: object) -> TypeGuard[int | float]:
    """A number that can be drawn and compared, which a flag, an infinity and a NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e100 < value < 1e100
