"""The folder in which an embedding job works: whose it is, what it is for, and how it goes.

    inputs.arrow   the list of inputs, for other processes
    job.json       what the job is; the same command goes on with it, another one does not
    final/         finished files until they get their names
    lock           held while a process works here

What a `FileJob` keeps here beside these, its vectors and journals, is explained in `tcl.embedding.journal`.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tcl.embedding.plan import differences, fingerprint_of
from tcl.errors import DataError, UsageError
from tcl.files.atomic import write_whole
from tcl.files.json_object import Malformed, read_object
from tcl.files.locks import acquire, acquire_folder, release
from tcl.vectors.files import COMPLETE, file_names, meta_of, other_formats, partial_folder, rivals

INPUTS = "inputs.arrow"
FINAL = "final"
_JOB = "job.json"
_LOCK = "lock"
_OWN = re.compile(
    r"lock|final|job\.json|inputs\.arrow|\.(job\.json|inputs\.arrow)\.partial|vectors\.f32|tokens\.f16|journal-\d+\.jsonl"
)


def is_begun(folder: Path) -> bool:
    """Whether a job was begun here that is not over."""
    return (folder / _JOB).exists() or is_complete(folder)


def is_complete(folder: Path) -> bool:
    """Whether the final files were written, and at most lack their names."""
    return (folder / FINAL / COMPLETE).exists()


def may_replace(folder: Path) -> bool:
    """Whether the job that was begun here may replace what has its final name."""
    return is_complete(folder) or ((folder / _JOB).exists() and bool(_read(folder).get("replaces")))


def write_job(folder: Path, fingerprint: dict[str, Any], replaces: bool = False) -> None:
    """Say what the job is."""
    write_whole(folder / _JOB, json.dumps({"fingerprint": fingerprint, "replaces": replaces}, indent=2) + "\n")


def continues(folder: Path, wanted: dict[str, Any], out: Path) -> bool:
    """Whether a job was begun here, which then is the one that is wanted now.

    Raises:
        UsageError: it is another one.
    """
    if not (folder / _JOB).exists():
        return False
    found = differences(_read(folder)["fingerprint"], wanted)
    if found:
        raise UsageError(
            f"{out}: a job was begun here with other {', '.join(found)}",
            hint="give the same as then to go on; or discard what it has done with --restart, or choose another --out",
        )
    return True


def finished_meta(folder: Path, out: Path) -> dict[str, Any]:
    """The meta file of a job whose final files were written, wherever it is by now; empty where it is gone."""
    for place in (folder / FINAL / out.name, out):
        try:
            return meta_of(place)
        except (OSError, DataError):
            continue
    return {}


def is_leftover(folder: Path, wanted: dict[str, Any], out: Path) -> bool:
    """Whether the job that is wanted has ended here, but was killed while it removed its folder."""
    return is_complete(folder) and out.exists() and not differences(fingerprint_of(finished_meta(folder, out)), wanted)


def check_free(folder: Path, out: Path) -> None:
    """May a job whose final files were written give them their names?

    Raises:
        UsageError: somebody has put vectors there since it was begun, perhaps of the other format.
    """
    if not (folder / FINAL / out.name).exists():
        return
    own = [] if _read(folder).get("replaces") else [out]
    for path in (*own, *rivals(out)):
        if path.exists():
            hint = f"move it away with the files beside it, and the same command goes on from {folder}"
            raise UsageError(f"{path}: exists by now", hint=hint)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / _JOB, {"fingerprint": {"inputs": list, "model": str}, "replaces?": bool})
    except (OSError, Malformed) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{folder / _JOB}: damaged: {reason}", hint="discard the job with --restart") from error


def lock(folder: Path, out: Path) -> int:
    """Create and hold the folder of a job, until the lock is released or the process ends, however it does.

    Raises:
        UsageError: another process holds it, or it cannot be created.
    """
    try:
        return acquire_folder(folder, _LOCK)
    except BlockingIOError:
        raise UsageError(f"{out}: another process is writing it", hint="wait for it, or choose another --out") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}", hint="choose another --out") from error


def check_own(folder: Path) -> None:
    """Is what is in the folder of a job its own? Then the job may remove it. Hidden files of others are left alone.

    Raises:
        UsageError: it is a link, or holds something else.
    """
    if folder.is_symlink():
        raise UsageError(f"{folder}: is a link", hint="remove it, or choose another --out")
    for place in (folder, folder / FINAL):
        for path in () if place.is_symlink() else _inside(place):
            if not _is_own(path) and not path.name.startswith(".") and os.path.lexists(path):
                raise UsageError(
                    f"{path}: does not belong to a job of `tcl embed`",
                    hint=f"move it out of {folder}, or choose another --out",
                )


def _inside(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is none, or where another process is just removing it."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_own(path: Path) -> bool:
    """Whether a job writes a file of this name into its folder, or into `final/` there."""
    if path.is_symlink():
        return False
    if path.parent.name != FINAL:
        return bool(_OWN.fullmatch(path.name)) and path.is_dir() == (path.name == FINAL)
    out = path.parent.parent.with_suffix("")
    return path.name in {COMPLETE, f".{COMPLETE}.partial", *(file.name for file in file_names(out))}


def check_alone(out: Path) -> None:
    """Is nobody writing vectors of the other format, with the same sidecar files?

    Called by who holds the folder of `out`: of two that begin at once, at least one sees the other.

    Raises:
        UsageError: another process is.
    """
    for other in other_formats(out):
        try:
            release(acquire(partial_folder(other) / _LOCK, create=False))
        except BlockingIOError:
            raise UsageError(
                f"{out}: another process is writing {other}, which shares its sidecar files",
                hint="wait for it, or choose another --out",
            ) from None
        except OSError:  # no job there
            continue


def discard(folder: Path) -> None:
    """Forget a job, but keep its folder and the lock."""
    clear_final(folder)  # first: it speaks for files that are about to go
    _clear(folder)


def remove(folder: Path) -> None:
    """Remove the folder of a job that is over; a call that was killed may be repeated."""
    _clear(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # somebody has just begun anew in it
        folder.rmdir()


def clear_final(folder: Path) -> None:
    """Remove the final files of a job that have no names yet."""
    final = folder / FINAL
    (final / COMPLETE).unlink(missing_ok=True)  # first: it speaks for files that are about to go
    for path in _inside(final):
        if _is_own(path):
            path.unlink()
    with suppress(OSError):
        final.rmdir()


def _clear(folder: Path) -> None:
    """Remove all that a job wrote but the lock; last what tells a later call how far this one came."""
    for path in _inside(folder):
        if path.name not in (_JOB, FINAL, _LOCK) and _is_own(path):
            path.unlink()
    (folder / _JOB).unlink(missing_ok=True)
    clear_final(folder)
