"""What of an embedding job is done: one line per finished batch, written after its vectors. Imports no torch.

    {"batch": 3, "crc": 12345, "rows": [[192, 60], [253, 3]], "failed": [[252, "no such file"]]}

Every process writes to a file of its own, and a new one at each start, so that no line is ever continued that a killed
process left half-written. Such a line is no JSON and does not count; nor does a batch whose vectors have another CRC.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcl.embedding.plan import Plan
from tcl.embedding.store import Runs, VectorStore


class Entry(NamedTuple):
    """A finished batch.

    Attributes:
        batch: its number.
        checksum: of its vectors.
        runs: its rows that have vectors, in the order in which these were computed.
        failed: its other rows, each with the reason.
    """

    batch: int
    checksum: int
    runs: Runs
    failed: list[tuple[int, str]]


class JournalWriter:
    """Appends to one journal.

    Args:
        folder: of the job.
        number: of the journal; nobody else has it.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._handle = os.open(_path(folder, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def append(self, entry: Entry) -> None:
        """Write a line, in one piece as far as the disk has room."""
        record = {"batch": entry.batch, "crc": entry.checksum, "rows": entry.runs, "failed": entry.failed}
        line = memoryview((json.dumps(record) + "\n").encode())
        while line:
            line = line[os.write(self._handle, line) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def next_number(folder: Path) -> int:
    """The first number that no journal has."""
    return max((number for number, _ in _journals(folder)), default=-1) + 1


class Ledger:
    """The batches that are done, by where their lines are: memory grows with the batches, not with the failures.

    Args:
        folder: of the job.
        plan: of its batches.
        store: leave out batches whose vectors on disk are not those that were journalled; None trusts the journals.
        failures: whether batches count in which an input failed; else they are to be done again.
    """

    def __init__(self, folder: Path, plan: Plan, store: VectorStore | None = None, failures: bool = True) -> None:
        self.folder, self.plan = folder, plan
        self.done: NDArray[np.bool_] = np.zeros(plan.batches, bool)
        self._place = np.zeros((plan.batches, 2), np.int64)  # journal, offset
        for number, path in _journals(folder):
            for offset, line in _lines(path):
                entry = _parse(line, plan)
                if entry is None or (entry.failed and not failures):
                    continue
                if store is None or store.checksum(entry.runs) == entry.checksum:
                    self.done[entry.batch] = True
                    self._place[entry.batch] = number, offset

    @property
    def rows_done(self) -> int:
        """Inputs in finished batches."""
        full = int(self.done.sum()) * self.plan.batch_size
        last = self.plan.batches - 1
        return full - (self.plan.batch_size - self.plan.size_of(last) if self.done[last] else 0)

    def entries(self, batches: range) -> Iterator[Entry]:
        """The lines of batches that are all done."""
        for batch in batches:
            number, offset = self._place[batch]
            with _path(self.folder, number).open("rb") as file:
                file.seek(offset)
                entry = _parse(file.readline(), self.plan)
            assert entry is not None
            yield entry


def _path(folder: Path, number: int) -> Path:
    return folder / f"journal-{number}.jsonl"


def _journals(folder: Path) -> list[tuple[int, Path]]:
    found = ((path.stem.removeprefix("journal-"), path) for path in folder.glob("journal-*.jsonl"))
    return sorted((int(number), path) for number, path in found if number.isdigit())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _parse(line: bytes, plan: Plan) -> Entry | None:
    """A line's entry; None where it is cut, or nothing that was ever written here."""
    try:
        record: dict[str, Any] = json.loads(line)
        runs = [(int(start), int(count)) for start, count in record["rows"]]
        failed = [(int(row), str(reason)) for row, reason in record["failed"]]
        entry = Entry(int(record["batch"]), int(record["crc"]), runs, failed)
    except (ValueError, KeyError, TypeError):
        return None
    known = 0 <= entry.batch < plan.batches
    return entry if known and sum(count for _, count in runs) + len(failed) == plan.size_of(entry.batch) else None
