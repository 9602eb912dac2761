"""A pipe or device that is named as data is refused in one line: it would be waited for, or read, forever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tcl.data.inputs.listing import list_inputs
from tcl.data.pairs.table import read_pairs
from tcl.data.tables.formats import READERS
from tcl.errors import UsageError
from tcl_cli._queries import read_queries
from tests.data.files import png

READ: dict[str, Callable[[str], object]] = {
    "pairs": lambda name: read_pairs([name]),
    "inputs": list_inputs,
    "queries": lambda name: list(read_queries(Path(name))),
}
SUFFIXES = {
    "pairs": (*READERS, ".tar", ".txt", ".lst", ".npy", ".png"),
    "inputs": (*READERS, ".tar", ".txt", ".lst", ".npy", ".png"),
    "queries": (".txt", ".jsonl", ".npy"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("reader", "suffix"), [(name, suffix) for name in READ for suffix in SUFFIXES[name]])
def test_a_pipe_is_refused(reader: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    os.mkfifo(path)
    with pytest.raises(UsageError, match=f"{path.name}: a pipe or device, not a file"):
        READ[reader](str(path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["metadata.csv", "00000.tar", "rows.parquet"])
def test_a_pipe_in_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    if name.startswith("metadata"):
        (tmp_path / "a.png").write_bytes(png(4, 4))
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name}: a pipe or device, not a file"):
        read_pairs([str(tmp_path)])
