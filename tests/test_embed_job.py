"""A job goes on where it was killed, with the same bytes at the end, and with nothing but the job it was."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.embed_kill import kill_often
from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.embed import embed
from tcl.embedding import folder as job_folder
from tcl.embedding import job as embed_job
from tcl.embedding.folder import lock
from tcl.errors import DataError, TclError, UsageError
from tcl.inputs import list_inputs

IMAGES = 100


class Killed(BaseException):
    """Stands for SIGKILL where a test chooses the moment."""


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, one of them broken; do not change it."""
    return make_images(tmp_path_factory.mktemp("images") / "images", IMAGES)


class Stopping(ProjectionEncoder):
    """Ends the process, as it were, at a batch."""

    at: int = 1 << 30
    calls: int = 0

    def encode_image(self, pixel_values: Any) -> Any:
        self.calls += 1
        if self.calls > self.at:
            raise Killed
        return super().encode_image(pixel_values)


def run(images: Path, out: Path, processor: Any, at: int | None = None, **options: Any) -> Stopping:
    """One call, which dies after `at` batches."""
    encoder = Stopping(processor)
    encoder.at = 1 << 30 if at is None else at
    options = {"batch_size": 8, "workers": 2} | options
    embed(list_inputs(str(images)), encoder, out, **options)
    return encoder


def killed(images: Path, out: Path, processor: Any, at: int, **options: Any) -> None:
    with pytest.raises(Killed):
        run(images, out, processor, at, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(images: Path, tmp_path: Path, processor: Any) -> Callable[..., dict[str, bytes]]:
    """The files of a job that was left alone."""

    def make(name: str = "v.npy", **options: Any) -> dict[str, bytes]:
        (tmp_path / "whole").mkdir()
        run(images, tmp_path / "whole" / name, processor, **options)
        return files(tmp_path / "whole")

    return make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_killed_at_random(tmp_path: Path) -> None:
    """Real processes, real SIGKILL."""
    figures = kill_often(tmp_path, 160, kills=5, lanes=2)
    assert figures["kills"] == 5 and figures["identical"]
    assert 0 <= figures["encoded_twice"] <= figures["allowed_twice"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("v.npy", {}), ("v.parquet", {"dtype": "float16"}), ("v.npy", {"dtype": "int8", "keep_tokens": True})],
)
def test_what_was_done_is_not_done_again(
    whole: Callable[..., dict[str, bytes]], images: Path, place: Path, processor: Any, name: str, options: Any
) -> None:
    expected = whole(name, **options)
    done = 0
    for at in (3, 2, 4):
        killed(images, place / name, processor, at, **options)
        assert not (place / name).exists() and (place / f"{name}.partial").is_dir()
    said: list[str] = []
    progress: list[int] = []
    last = run(images, place / name, processor, progress=progress.append, say=said.append, **options)
    probes = 1 if options.get("keep_tokens") else 0  # to learn the size of the tokens
    done = 3 + 2 + 4 - 3 * probes
    assert last.calls - probes == 13 - done
    assert progress[0] == 8 * done and sum(progress) == IMAGES
    assert files(place) == expected


def test_vectors_that_a_power_cut_lost_are_computed_again(
    whole: Callable[..., dict[str, bytes]], images: Path, place: Path, processor: Any
) -> None:
    expected = whole()
    killed(images, place / "v.npy", processor, 5)
    folder = place / "v.npy.partial"
    vectors = folder / "vectors.f32"
    content = bytearray(vectors.read_bytes())
    content[10] ^= 1  # of batch 0
    vectors.write_bytes(content[:-70])  # the end of batch 4
    journal = folder / "journal-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"\0" * 40 + b"\n", lines[4][:-9]]))  # no line of batch 3; a cut one
    assert run(images, place / "v.npy", processor).calls == 13 - 2
    assert files(place) == expected


def test_killed_at_every_step_of_the_end(
    whole: Callable[..., dict[str, bytes]],
    images: Path,
    place: Path,
    processor: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever renames or removes a file may be the last thing that a process does, before or after."""
    expected = whole()
    killed(images, place / "v.npy", processor, 12)
    left = [0]

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            result = change(*arguments, **options)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "unlink"), (os, "replace"), (os, "rename"), (os, "rmdir"), (os, "fsync")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        steps = 0
        while True:
            copy = place.with_name(f"copy-{steps}")
            shutil.copytree(place, copy)
            steps += 1
            left[0] = steps
            try:
                run(images, copy / "v.npy", processor)
            except Killed:
                pass
            else:
                break
            left[0] = 0
            vectors = copy / "v.npy"
            if vectors.exists():  # then they are complete, and those of this job
                assert vectors.read_bytes() == expected["v.npy"]
            if job_folder.is_begun(copy / "v.npy.partial"):
                run(images, copy / "v.npy", processor)
            shutil.rmtree(copy / "v.npy.partial", ignore_errors=True)  # at most the empty lock is left of it
            assert files(copy) == expected, steps
    assert steps > 30


def test_another_job_is_refused_with_both_choices(images: Path, place: Path, processor: Any, tmp_path: Path) -> None:
    own = shutil.copytree(images, tmp_path / "own")
    out = place / "v.npy"
    killed(own, out, processor, 5)
    before = files(place / "v.npy.partial")

    class Other(ProjectionEncoder):
        pass

    other_model = Other(processor)
    other_model.model_hash = "f" * 64
    for message, options in (
        (r"batch size \(8 then, 4 now\)", {"batch_size": 4}),
        (r"dtype \(float32 then, int8 now\)", {"dtype": "int8"}),
        ("--keep-tokens", {"keep_tokens": True}),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            run(own, out, processor, **options)
        assert "--restart" in str(caught.value.hint) and "--out" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"model \(0123456789ab then, ffffffffffff now\)"):
        embed(list_inputs(str(own)), other_model, out, batch_size=8)
    shutil.copy(own / "1.png", own / "new.png")
    with pytest.raises(UsageError, match=r"inputs \(100 then, 101 now\)"):
        run(own, out, processor)
    (own / "new.png").unlink()
    os.utime(own / "1.png", ns=(0, 1))
    with pytest.raises(UsageError, match=r"with other inputs$"):
        run(own, out, processor)
    assert files(place / "v.npy.partial") == before
    assert run(own, out, processor, restart=True).calls == 13
    assert sorted(files(place)) == ["v.errors.jsonl", "v.ids.jsonl", "v.meta.json", "v.npy"]


def test_a_restart_that_was_killed_goes_on_without_being_one(images: Path, place: Path, processor: Any) -> None:
    out = place / "v.npy"
    run(images, out, processor)
    before = files(place)
    killed(images, out, processor, 5, restart=True)
    assert files_only(place) == before
    assert run(images, out, processor).calls == 13 - 5
    assert files(place) == before
    with pytest.raises(UsageError, match="exists"):
        run(images, out, processor)


def files_only(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_job_file_that_cannot_be_read(images: Path, place: Path, processor: Any) -> None:
    killed(images, place / "v.npy", processor, 5)
    (place / "v.npy.partial" / "job.json").write_text("{")
    with pytest.raises(UsageError, match=r"job\.json: cannot be read"):
        run(images, place / "v.npy", processor)


def test_two_at_once(images: Path, place: Path, processor: Any) -> None:
    out = place / "v.npy"
    killed(images, out, processor, 5)
    descriptor = lock(place / "v.npy.partial", out)
    with pytest.raises(UsageError, match="another process is writing it"):
        run(images, out, processor)
    os.close(descriptor)
    run(images, out, processor)


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Sets the largest size a file can grow to: what a full disk is to a process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_disk_without_room(
    whole: Callable[..., dict[str, bytes]],
    images: Path,
    place: Path,
    processor: Any,
    small_files: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    at_the_end: bool,
) -> None:
    """While vectors are computed, and while the final files are written."""
    expected = whole()
    write_final = embed_job.write_final

    def fill_up(*parts: Any) -> None:
        small_files(3000)
        write_final(*parts)

    with monkeypatch.context() as patch:
        if at_the_end:
            patch.setattr(embed_job, "write_final", fill_up)
        else:
            small_files(3000)
        with pytest.raises(TclError, match=r"v\.npy\.partial: cannot be written: File too large") as caught:
            run(images, place / "v.npy", processor)
    small_files(resource.RLIM_INFINITY)
    assert "the same command goes on" in str(caught.value.hint)
    assert files_only(place) == {}
    assert run(images, place / "v.npy", processor).calls == (0 if at_the_end else 8)
    assert files(place) == expected


def test_a_source_that_goes_away_stops_the_job(images: Path, place: Path, processor: Any, tmp_path: Path) -> None:
    own, away = shutil.copytree(images, tmp_path / "own"), tmp_path / "away"
    encoder = Stopping(processor)
    encode = encoder.encode_image

    def unmount(pixels: Any) -> Any:
        if encoder.calls == 3:
            own.rename(away)
        return encode(pixels)

    encoder.encode_image = unmount  # type: ignore[method-assign]
    inputs = list_inputs(str(own))
    with pytest.raises(DataError, match="own: has gone") as caught:
        embed(inputs, encoder, place / "v.npy", batch_size=8, workers=2)
    assert "the same command goes on" in str(caught.value.hint)
    away.rename(own)
    run(own, place / "v.npy", processor)
    assert len(np.load(place / "v.npy")) == IMAGES - 1


def test_a_folder_that_changes_meanwhile(images: Path, place: Path, processor: Any, tmp_path: Path) -> None:
    """What has vanished is listed as such; what is new is left out."""
    own = shutil.copytree(images, tmp_path / "own")
    inputs = list_inputs(str(own))
    (own / "99.png").unlink()
    shutil.copy(own / "1.png", own / "new.png")
    report = embed(inputs, ProjectionEncoder(processor), place / "v.npy")
    assert (report.count, report.failed) == (IMAGES - 2, 2)
    errors = [json.loads(line) for line in (place / "v.errors.jsonl").read_text().splitlines()]
    assert [(error["id"], error["reason"]) for error in errors][1] == ("99.png", "no such file")


def test_nothing_is_left_of_a_job_that_did_nothing(images: Path, place: Path, processor: Any) -> None:
    killed(images, place / "v.npy", processor, 0)
    assert list(place.iterdir()) == []


def test_a_disk_that_goes_away(images: Path, place: Path, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*parts: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(embed_job.VectorStore, "write", write)
    with pytest.raises(TclError, match="cannot be written: Input/output error"):
        run(images, place / "v.npy", processor)
