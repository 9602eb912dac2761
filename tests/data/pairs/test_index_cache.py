"""A large index is a file: found again while its sources stay, shared by processes, rebuilt when damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import pytest

from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.errors import DataError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `pairs.jsonl`; indexes of more than four rows are files."""
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tcl.data.pairs.table._BATCH_ROWS", 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", 11)
    return tmp_path


def write_rows(path: Path, rows: int, word: str = "dog") -> None:
    lines = [json.dumps({"image": f"{i}.jpg", "caption": [f"a {word} {i}", "again"]}) for i in range(rows)]
    path.write_text("\n".join([*lines, "3"]))


def files(place: Path) -> list[Path]:
    return sorted((place / "cache" / "index").glob("*"))


def read(*sources: str, images: str | None = None) -> tuple[PairIndex, bool]:
    """The index, and whether the sources were read for it."""
    done: list[int] = []
    index = read_pairs(sources or ["pairs.jsonl"], images, progress=done.append)
    return index, bool(done)


def same(one: PairIndex, other: PairIndex) -> bool:
    names = ("fingerprint", "skipped", "skipped_reasons", "parts")
    return list(one) == list(other) and all(getattr(one, name) == getattr(other, name) for name in names)


def test_a_large_index_is_found_again(place: Path) -> None:
    first, was_read = read("pairs.jsonl@2", "scenes:train:3")
    again, was_read_again = read("pairs.jsonl@2", "scenes:train:3")
    assert (was_read, was_read_again) == (True, False)
    assert same(first, again) and len(first) == 14 and first.skipped == 1
    assert [again[row] for row in range(14)] == list(again)
    assert len(files(place)) == 1
    without = read_pairs(["pairs.jsonl@2", "scenes:train:3"], cache=False)
    assert same(first, without) and len(files(place)) == 1


def test_a_small_index_needs_no_file(place: Path) -> None:
    write_rows(place / "pairs.jsonl", 4)
    index, _ = read()
    assert len(index) == 4 and not (place / "cache").exists()


def test_the_fingerprint_does_not_depend_on_batches(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = read()[0].fingerprint
    monkeypatch.setattr("tcl.data.pairs.table._BATCH_ROWS", 100)
    assert read_pairs(["pairs.jsonl"], cache=False).fingerprint == fingerprint
    monkeypatch.setattr("tcl.data.pairs.table._BATCH_CHARACTERS", 30)
    index = read_pairs(["pairs.jsonl"], cache=False)
    assert index.fingerprint == fingerprint and index.table.column(0).num_chunks > 3


def test_whatever_decides_the_rows_decides_which_index_is_found(place: Path) -> None:
    (place / "photos").mkdir()
    (place / "other.jsonl").symlink_to("pairs.jsonl")
    calls = [
        (("pairs.jsonl",), None),
        (("pairs.jsonl",), "photos"),
        (("pairs.jsonl@3",), None),
        (("pairs.jsonl", "pairs.jsonl"), None),
        (("other.jsonl",), None),
    ]
    for sources, images in calls:
        assert read(*sources, images=images)[1]
    for sources, images in calls:
        assert not read(*sources, images=images)[1]


def test_a_file_that_changes_is_read_again(place: Path) -> None:
    before, _ = read()
    status = os.stat("pairs.jsonl")
    write_rows(place / "pairs.jsonl", 11, "cat")
    os.utime("pairs.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after, was_read = read()
    assert was_read and after[0].captions[0] == "a cat 0"
    assert before[0].captions[0] == "a dog 0"  # the open index stays as it was
    write_rows(place / "pairs.jsonl", 12, "cat")
    os.utime("pairs.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(read()[0]) == 12


def test_a_folder_is_read_again_when_names_or_captions_change(place: Path) -> None:
    (place / "photos").mkdir()
    for i in range(6):
        (place / "photos" / f"{i}.jpg").write_bytes(b"")
        (place / "photos" / f"{i}.txt").write_text("a dog")
    assert read("photos")[1] and not read("photos")[1]
    (place / "photos" / "3.txt").write_text("a cat")
    os.utime(place / "photos" / "3.txt", (0, 1))
    assert read("photos")[0][3].captions == ["a cat"]
    (place / "photos" / "5.jpg").rename(place / "photos" / "6.jpg")
    assert read("photos")[0].skipped == 1
    (place / "photos" / "0.jpg").write_bytes(b"other pixels")
    assert not read("photos")[1]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "head", "tail"])
def test_a_damaged_file_is_rebuilt(damage: str, place: Path) -> None:
    first, _ = read()
    (path,) = files(place)
    good = path.read_bytes()
    changed = {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "text": b"no arrow at all",
        "head": bytes(len(good) // 2) + good[len(good) // 2 :],
        "tail": good[:-200] + bytes(194) + good[-6:],
    }[damage]
    path.unlink()  # `first` has it mapped
    path.write_bytes(changed)
    again, was_read = read()
    assert was_read and same(first, again)
    assert not read()[1]


@pytest.mark.parametrize("where", ["file", "full"])
def test_without_a_cache_folder_the_file_is_temporary(where: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("TCL_CACHE", str(place / "file") if where == "file" else "/proc/cache")
    first, _ = read()
    again, was_read = read()
    assert was_read and same(first, again)
    assert len(list(place.glob("tcl-index-*.arrow"))) == 2
    del first, again
    assert not list(place.glob("tcl-index-*.arrow"))


def test_bad_rows_leave_no_half_written_file(place: Path) -> None:
    with Path("pairs.jsonl").open("a") as file:
        file.write("\n{")
    for cache in (True, False):
        with pytest.raises(DataError, match="line 13: malformed JSON"):
            read_pairs(["pairs.jsonl"], cache=cache)
    assert not files(place) and not list(place.glob("tcl-index-*"))


def test_a_full_disk_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_rows(place / "pairs.jsonl", 2000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a limit of the same effect: the write fails
    try:
        with pytest.raises(DataError, match=r"cannot write the index of the data to .*index: File too large") as caught:
            read()
        with pytest.raises(DataError, match="cannot write the index of the data to"):
            read_pairs(["pairs.jsonl"], cache=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "TCL_CACHE" in str(caught.value.hint)
    assert not files(place) and not list(place.glob("tcl-index-*"))


def read_in_a_process(sources: list[str]) -> list:
    index, was_read = read(*sources)
    return [index.fingerprint, len(index), was_read]


def test_processes_that_build_at_once_agree(place: Path) -> None:
    write_rows(place / "pairs.jsonl", 3000)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.map(read_in_a_process, [["pairs.jsonl"]] * 4, chunksize=1)
    assert len({result[0] for result in results}) == 1 and len(files(place)) == 1
    assert not read()[1]


def test_another_process_maps_the_same_file(place: Path) -> None:
    for cache in (True, False):
        index = read_pairs(["pairs.jsonl"], cache=cache)
        sent = pickle.dumps(index)
        assert len(sent) < 500
        assert same(pickle.loads(sent), index)
    for path in files(place):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the index of the data is gone"):
        pickle.loads(pickle.dumps(read_pairs(["pairs.jsonl"])).replace(b"arrow", b"arrov"))
