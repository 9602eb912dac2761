"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl.files.atomic import atomic_file, atomic_folder, write_whole


def test_atomic_folder_leaves_nothing_behind_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as folder:
        (folder / "file").write_text("whole")
    with pytest.raises(FileExistsError), atomic_folder(target):
        pass
    with atomic_folder(target, replace=True) as folder:
        (folder / "other").write_text("new")
    assert [path.name for path in target.iterdir()] == ["other"] and list(tmp_path.iterdir()) == [target]


def test_atomic_file_leaves_the_old_one_behind_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(RuntimeError), atomic_file(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write_whole(target, "whole")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "whole" and list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_whole(tmp_path / "file" / "target", "")
