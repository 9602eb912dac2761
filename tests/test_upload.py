"""Checkpoints are copied to any fsspec URL, and a copy that fails stops nothing."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from tcl.errors import UsageError
from tcl.upload import Uploader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000001"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"123")
    (folder / "inner" / "more").write_text("four")
    return folder


def test_a_folder_is_copied(folder: Path) -> None:
    warnings: list[str] = []
    with Uploader("memory://bucket/run", warnings.append) as uploader:
        uploader.copy(folder)
    files = fsspec.filesystem("memory")
    assert files.cat("/bucket/run/step-00000001/weights") == b"123"
    assert files.cat("/bucket/run/step-00000001/inner/more") == b"four"
    assert warnings == []


def test_a_failing_copy_is_a_warning(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    warnings: list[str] = []
    with Uploader(f"file://{tmp_path}/file/below", warnings.append) as uploader:
        uploader.copy(folder)
    (warning,) = warnings
    assert "step-00000001 was not copied to file://" in warning


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.upload: nosuch://bucket"):
        Uploader("nosuch://bucket", print)


def test_without_a_url_nothing_happens(folder: Path) -> None:
    with Uploader(None, print) as uploader:
        uploader.copy(folder)
