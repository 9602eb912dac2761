"""A run folder is held by one process at a time, and a start that came to nothing leaves nothing."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tcl.errors import UsageError
from tcl.files.locks import LOCK_FILE, hold_run, is_unused


def test_a_held_folder_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hold_run(run), pytest.raises(UsageError, match="another process trains in this folder"), hold_run(run):
        raise AssertionError
    with hold_run(run):
        (run / "config.yaml").write_text("{}")
    with hold_run(run):
        pass
    assert sorted(path.name for path in run.iterdir()) == [LOCK_FILE, "config.yaml"]


def test_what_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    for error in (None, RuntimeError):
        try:
            with hold_run(tmp_path / "runs" / "a"):
                if error:
                    raise error
        except RuntimeError:
            pass
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()
    with hold_run(tmp_path / "own"):
        pass
    assert list((tmp_path / "own").iterdir()) == []  # the folder was there before
    with hold_run(tmp_path / "kept", tidy=False):
        pass
    assert is_unused(tmp_path / "kept") and (tmp_path / "kept" / LOCK_FILE).is_file()


def test_a_child_that_lives_on_does_not_hold_the_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    done = context.Event()
    with hold_run(tmp_path / "run", tidy=False):
        child = context.Process(target=done.wait, args=(60,))
        child.start()
    with hold_run(tmp_path / "run"):
        pass
    done.set()
    child.join()


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "run" / LOCK_FILE).mkdir(parents=True)
    with pytest.raises(UsageError, match="run: cannot be written: Is a directory"), hold_run(tmp_path / "run"):
        raise AssertionError
