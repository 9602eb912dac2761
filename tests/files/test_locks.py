"""A lock is held by one at a time, whatever its file goes through, and ends with the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tcl.files.locks import acquire, acquire_folder, release

HOLD = "import sys, time; from tcl.files.locks import acquire; from pathlib import Path; acquire(Path(sys.argv[1])); \
print('held', flush=True); time.sleep(60)"


def test_a_second_one_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        acquire(tmp_path / "lock")
    release(lock)
    release(acquire(tmp_path / "lock"))


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError):
        acquire(tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    release(acquire(tmp_path / "lock"))


def test_a_lock_file_that_was_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removes it after this process has opened it: what is held must be the file that is there."""
    path, opened = tmp_path / "lock", os.open

    def late(name: Path, *options: int) -> int:
        monkeypatch.undo()
        descriptor = opened(name, *options)
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", late)
    lock = acquire(path)
    with pytest.raises(BlockingIOError):
        acquire(path)
    release(lock)


def test_a_file_system_without_locks_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    release(acquire(tmp_path / "lock"))


def test_a_lock_that_need_not_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        acquire(tmp_path / "lock", create=False)
    with pytest.raises(FileNotFoundError):
        acquire_folder(tmp_path / "gone" / "job", "lock")
    release(acquire_folder(tmp_path / "made" / "job", "lock", parents=True))
    assert (tmp_path / "made" / "job" / "lock").is_file()
