"""Pairs to tar shards of small images, which are read in order and without millions of files.

    OUT/
      00000.tar         KEY.jpg and KEY.json {"captions", "image_id", "image"}; KEY is the number of the row
      00000_stats.json  counts, and the images that could not be read; written when its shard is complete
      errors.jsonl      all of these, at the end: {"row", "image", "reason"}
      pack.json         fingerprint of the pairs, settings, and, at the end, the totals

Which row goes into which shard is a function of the rows alone. So the bytes do not depend on the number of workers,
and a pack that was killed goes on at the first shard that is not complete.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tcl.data.pack.shard import Row, Shard, Shrinker
from tcl.errors import DataError, TclError, UsageError
from tcl.files.atomic import write_whole
from tcl.files.locks import LOCK_FILE, acquire_folder, release
from tcl.machine.processes import ordered_map

if TYPE_CHECKING:
    from tcl.data.pairs.table import PairIndex

FORMAT_VERSION = 1
CHUNK_IMAGES = 16
RECORD = "pack.json"
ERRORS = "errors.jsonl"


@dataclass(frozen=True)
class PackSettings:
    """What the bytes of a pack depend on, beside the pairs.

    Args:
        size: shorter side of an image, in pixels; smaller images stay as they are.
        quality: of JPEG, 1 to 95.
        shard_rows: rows that one shard is made of.
    """

    size: int = 288
    quality: int = 90
    shard_rows: int = 10_000


@dataclass
class PackReport:
    """Totals of a pack: its shards, and of its images how many were copied as they are and how many failed."""

    shards: int = 0
    images: int = 0
    copied: int = 0
    failed: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


class Pack:
    """A folder of shards, new or unfinished.

    Args:
        index: the pairs.
        out: the folder.
        settings: see `PackSettings`.

    Raises:
        UsageError: `out` holds something else, a pack of other pairs or settings, or a finished one; or the sources
            have weights, which a pack cannot hold.
    """

    def __init__(self, index: PairIndex, out: Path, settings: PackSettings) -> None:
        weighted = next((part for part in index.parts if part.weight != 1), None)
        if weighted:
            raise UsageError(
                f"{weighted.source}: a pack has no place for the weight {weighted.weight:g}",
                hint="pack this source into a folder of its own, and weight that: tcl pretrain --data 'packed/*.tar@2'",
            )
        self.index, self.out, self.settings = index, out, settings
        self._identity = {
            "format_version": FORMAT_VERSION,
            "fingerprint": index.fingerprint,
            "rows": len(index),
            **asdict(settings),
        }
        self._check_folder()
        rows, step = len(index), settings.shard_rows
        self.shards = [Shard(out, n, start, min(start + step, rows)) for n, start in enumerate(range(0, rows, step))]
        self._missing = [shard for shard in self.shards if not shard.is_complete()]

    @property
    def shards_done(self) -> int:
        """Shards that are complete."""
        return len(self.shards) - len(self._missing)

    @property
    def rows_done(self) -> int:
        """Rows of the shards that are complete."""
        return len(self.index) - sum(shard.stop - shard.start for shard in self._missing)

    def write(self, workers: int = 1, progress: Callable[..., object] = lambda n, **info: None) -> PackReport:
        """Write what is missing.

        Args:
            workers: processes that read, resize and compress.
            progress: called with the number of rows done since the last call, and `bad`, those not readable so far.

        Returns:
            the totals, with the shards of an earlier run.

        Raises:
            UsageError: the folder cannot be written, or another process is packing into it.
            DataError: not one image can be read; nothing is left in the folder.
            TclError: the disk is full; complete shards stay.
        """
        try:
            lock = self._lock()
            try:
                self._write_record(finished=False)
                self._write_shards(workers, progress)
                return self._finish()
            finally:
                (self.out / LOCK_FILE).unlink(missing_ok=True)
                release(lock)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{self.out}: cannot be written: {error.strerror}", hint="name another folder") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TclError(
                f"{self.out}: no space left on the device",
                hint=f"{self.shards_done} of {len(self.shards)} shards are complete; free some space and run it again",
            ) from error

    def _check_folder(self) -> None:
        new = "name a new folder"
        try:
            names = os.listdir(self.out) if self.out.exists() else []
            found = any(not name.startswith(".") for name in names)  # hidden ones may be ours, of a killed job
            record = json.loads((self.out / RECORD).read_text(encoding="utf-8")) if found else None
        except NotADirectoryError:
            raise UsageError(f"{self.out}: is no folder", hint=new) from None
        except (FileNotFoundError, ValueError):
            raise UsageError(f"{self.out}: exists and is no pack", hint=new) from None
        except OSError as error:
            raise UsageError(f"{self.out}: cannot be read: {error.strerror}", hint=new) from error
        if record is None:
            return
        if not isinstance(record, dict):
            raise UsageError(f"{self.out}: exists and is no pack", hint=new)
        for name, value in self._identity.items():
            if record.get(name) != value:
                what = "other pairs" if name in ("fingerprint", "rows") else f"another {name.replace('_', ' ')}"
                raise UsageError(f"{self.out}: is a pack with {what}", hint=f"{new}, or remove this one")
        if record.get("finished"):
            raise UsageError(f"{self.out}: is packed already", hint=f"{new}, or train from this one")

    def _write_record(self, **values: object) -> None:
        write_whole(self.out / RECORD, json.dumps({**self._identity, **values}, indent=2) + "\n")

    def _chunks(self) -> Iterator[list[Row]]:
        """Rows in portions that end where a shard does."""
        for shard in tuple(self._missing):
            for first in range(shard.start, shard.stop, CHUNK_IMAGES):
                last = min(first + CHUNK_IMAGES, shard.stop)
                yield [(row, self.index[row].image) for row in range(first, last)]

    def _write_shards(self, workers: int, progress: Callable[..., object]) -> None:
        make = partial(Shrinker, self.settings.size, self.settings.quality)
        results = ordered_map(make, self._chunks(), min(workers, len(self.index) // CHUNK_IMAGES))
        bad = 0

        def report(rows: int, failed: int) -> None:
            nonlocal bad
            bad += failed
            progress(rows, bad=bad)

        try:
            while self._missing:
                self._missing[0].write(self.index, results, report)
                self._missing.pop(0)
        finally:
            results.close()

    def _finish(self) -> PackReport:
        report = PackReport()
        errors = self.out / f".{ERRORS}.partial"
        first = None
        with errors.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for shard in self.shards:
                stats = shard.stats()
                report.shards += stats.images > 0  # without an image there is no tar
                report.images += stats.images
                report.copied += stats.copied
                report.failed += len(stats.errors)
                report.bytes_before += stats.bytes_before
                report.bytes_after += stats.bytes_after
                for error in stats.errors:
                    first = first or error
                    file.write(json.dumps(error, ensure_ascii=False) + "\n")
        if not report.images:
            self._remove()
            assert first is not None
            raise DataError(
                f"none of the {report.failed} images can be read",
                hint=f"the first one is {first['image']}: {first['reason']}",
            )
        errors.replace(self.out / ERRORS)
        self._write_record(finished=True, **asdict(report))
        return report

    def _lock(self) -> int:
        """Two processes that pack into one folder would take each other's temporary files."""
        try:
            return acquire_folder(self.out, LOCK_FILE, parents=True)
        except BlockingIOError:
            raise UsageError(f"{self.out}: another process is packing into it", hint="wait for it") from None

    def _remove(self) -> None:
        for shard in self.shards:
            shard.stats_file.unlink(missing_ok=True)
        (self.out / f".{ERRORS}.partial").unlink(missing_ok=True)
        (self.out / RECORD).unlink(missing_ok=True)
