"""Checkpoints are copied to any fsspec URL; a copy that fails stops nothing, a slow one is not waited for for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tcl.errors import DataError, UsageError
from tcl.training import upload
from tcl.training.reporter import Reporter
from tcl.training.upload import Uploader
from tests.slow_files import SlowFiles, slow_storage


@pytest.fixture
def slow() -> Iterator[type[SlowFiles]]:
    with slow_storage() as files:
        yield files


class Listener(Reporter):
    """Hears notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.messages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def message(self, text: str) -> None:
        self.messages.append(text)


def make_folder(place: Path) -> Path:
    (place / "inner").mkdir(parents=True)
    (place / "weights").write_bytes(b"123")
    (place / "inner" / "more").write_text("four")
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "step-00000001")


def test_a_folder_is_copied(folder: Path) -> None:
    listener = Listener()
    with Uploader("memory://bucket/run", listener) as uploader:
        uploader.copy(folder)
    files = fsspec.filesystem("memory")
    assert files.cat("/bucket/run/step-00000001/weights") == b"123"
    assert files.cat("/bucket/run/step-00000001/inner/more") == b"four"
    assert listener.messages == [] and uploader.pending == []


def test_a_failing_copy_is_a_warning(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    listener = Listener()
    with Uploader(f"file://{tmp_path}/file/below", listener) as uploader:
        uploader.copy(folder)
    (warning,) = listener.messages
    assert "step-00000001 was not copied to file://" in warning


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.upload: nosuch://bucket"):
        Uploader("nosuch://bucket", Reporter())


def test_without_a_url_nothing_happens(folder: Path) -> None:
    with Uploader(None, Reporter()) as uploader:
        uploader.copy(folder)
    assert uploader.pending == []


def test_behind_a_slow_copy_the_newest_checkpoint_waits_and_the_model(tmp_path: Path, slow: type[SlowFiles]) -> None:
    steps = [make_folder(tmp_path / "checkpoints" / f"step-{number}") for number in (1, 2, 3)]
    model = make_folder(tmp_path / "model")
    with Uploader("slow://run", Reporter()) as uploader:
        for place in (*steps, model):
            uploader.copy(place)
        assert uploader.pending == [steps[0], steps[2], model]
        slow.go.set()
    assert {Path(path).parent.name for path in slow.store if path.endswith("weights")} == {"step-1", "step-3", "model"}


def test_the_end_waits_only_so_long_and_says_for_what(folder: Path, slow: type[SlowFiles]) -> None:
    listener = Listener()
    with Uploader("slow://run", listener) as uploader:
        uploader.copy(folder)
        uploader.wait(seconds=0.2)
    assert listener.notes == ["Waiting for copies to slow://run, at most 0 s: step-00000001"]
    assert listener.messages == ["not copied to slow://run in time, but kept here: step-00000001"]
    assert uploader.pending == [folder]  # it has to stay as long as the copy goes on


@pytest.mark.parametrize(("asked", "allowed"), [(1, "7 s"), (3, "10 minutes")])
def test_a_stop_cuts_the_waiting_short(
    folder: Path, slow: type[SlowFiles], monkeypatch: pytest.MonkeyPatch, asked: int, allowed: str
) -> None:
    """Whether it comes before the waiting, or while it goes on."""
    monkeypatch.setattr(upload, "HURRIED", 7.0 if asked == 1 else 0.1)
    answers = iter([False] * (asked - 1) + [True])
    listener = Listener()
    with Uploader("slow://run", listener) as uploader:
        uploader.copy(folder)
        if asked == 1:
            slow.go.set()
        uploader.wait(stop=lambda: next(answers))
    assert listener.notes == [f"Waiting for copies to slow://run, at most {allowed}: step-00000001"]


def test_an_error_of_the_run_waits_and_an_interrupt_does_not(folder: Path, slow: type[SlowFiles]) -> None:
    listener = Listener()
    with pytest.raises(KeyboardInterrupt), Uploader("slow://run", listener) as uploader:
        uploader.copy(folder)
        raise KeyboardInterrupt
    assert listener.notes == []
    with pytest.raises(DataError), Uploader("memory://after-error", listener) as uploader:
        uploader.copy(folder)
        raise DataError("no more data")
    assert fsspec.filesystem("memory").exists("/after-error/step-00000001/weights")
