"""A job goes on where it was killed, with the same bytes at the end, and with nothing but the job it was."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.embed_kill import kill_often
from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.data.inputs.listing import Inputs, list_inputs
from tcl.embedding import job as embed_job
from tcl.embedding.folder import lock
from tcl.embedding.job import FileJob
from tcl.embedding.parts import Output
from tcl.embedding.pipeline import Link
from tcl.embedding.plan import EncoderFacts, Options
from tcl.embedding.run import embed
from tcl.errors import DataError, TclError, UsageError
from tests.open_files import open_files

IMAGES = 100


class Killed(BaseException):
    """Stands for SIGKILL where a test chooses the moment."""


@pytest.fixture(autouse=True)
def nothing_stays_open(tmp_path: Path) -> Iterator[None]:
    yield
    assert not open_files(tmp_path)


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


@pytest.fixture(params=[8])
def encoded(
    images: Path, place: Path, processor: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """The folder of a job that was killed when all was encoded, in batches of this size."""

    def stop(*parts: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(embed_job, "write_final", stop)
        run(images, place / "v.npy", processor, batch_size=request.param)
    return place / "v.npy.partial"


def test_lost_batches_before_the_last_one_count_in_progress(
    encoded: Path, images: Path, place: Path, processor: Any
) -> None:
    """The last one is shorter. The journal is of the second of two processes; the first one died before it had any."""
    vectors = encoded / "vectors.f32"
    vectors.write_bytes(b"xxxx" + vectors.read_bytes()[4:])
    (encoded / "journal-0.jsonl").rename(encoded / "journal-1.jsonl")
    progress: list[int] = []
    assert run(images, place / "v.npy", processor, progress=progress.append).calls == 1
    assert progress == [IMAGES - 8, 8]


@pytest.mark.parametrize("encoded", [10], indirect=True)  # there are ten whole batches
def test_lines_of_a_journal_that_nobody_has_written_do_not_count(
    encoded: Path, images: Path, place: Path, processor: Any, whole: Callable[..., dict[str, bytes]]
) -> None:
    """They neither stop a job nor hide the lines around them."""
    good = {"batch": 1, "crc": 1, "rows": [[10, 10]], "failed": []}
    values = {
        "batch": [10, 11, -1, "first", None],
        "rows": [[], [[10, 9]], 5],
        "failed": [[8], [[8, "why"]], [["why", 8]], [[8, "why", 8]]],
    }
    lines = [json.dumps(good | {name: value}) for name in values for value in values[name]]
    lines += [json.dumps(good | {"crc": crc}) for crc in ("?", {})]
    lines += [json.dumps(good | {"batch": 10, "rows": []}), json.dumps(good | {"rows": [], "failed": [[8, "why"]]})]
    lines += [json.dumps({name: good[name] for name in good if name != left_out}) for left_out in good]
    lines += ["", "null", "[]", "5", json.dumps(good)[:-1], json.dumps(good)[1:], "\x00"]
    journal = encoded / "journal-0.jsonl"
    wrong = "".join(f"{line}\n" for line in lines).encode() + b"\xff\n"
    journal.write_bytes(wrong + journal.read_bytes() + wrong)
    assert run(images, place / "v.npy", processor, batch_size=10).calls == 0
    assert files(place) == whole(batch_size=10)


def test_vectors_of_which_nothing_says_what_they_are_do_not_count(
    encoded: Path, images: Path, place: Path, processor: Any, whole: Callable[..., dict[str, bytes]]
) -> None:
    (encoded / "job.json").unlink()
    assert run(images, place / "v.npy", processor).calls == 13
    assert files(place) == whole()


def test_what_has_failed_is_tried_again_where_that_is_to_stop_the_job(
    encoded: Path, images: Path, place: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else is; once the files were written, they are refused."""
    out = place / "v.npy"

    def stop(*parts: Any) -> None:
        raise Killed

    encoder = Stopping(processor)
    with pytest.raises(DataError, match=r"96\.png: not an image"):
        embed(list_inputs(str(images)), encoder, out, batch_size=8, on_error="fail")
    assert encoder.calls == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(embed_job, "publish", stop)
        run(images, out, processor)
    with pytest.raises(DataError, match=r"v\.npy: 1 inputs have no vector") as caught:
        run(images, out, processor, on_error="fail")
    assert "--on-error skip" in str(caught.value.hint) and not out.exists()
    assert run(images, out, processor).calls == 0 and out.exists()


def test_nothing_readable_is_an_error_that_leaves_nothing(place: Path, processor: Any, tmp_path: Path) -> None:
    """It names the first input, though a text without words comes last into its batch."""
    texts = tmp_path / "t.jsonl"
    texts.write_text("".join(f'{{"id": "text {row}", "text": "{"!" * (20 - row)}"}}\n' for row in range(20)))
    with pytest.raises(DataError, match="none of the 20 inputs has a vector") as caught:
        run(texts, place / "v.npy", processor)
    assert caught.value.hint == "the first one is text 0: no words in the text"
    assert not list(place.iterdir())


def test_work_shared_by_two(images: Path, place: Path, processor: Any, whole: Callable[..., dict[str, bytes]]) -> None:
    """As by two processes, which get what they need by pickle."""
    inputs, encoder = list_inputs(str(images)), Stopping(processor)
    with FileJob.open(place / "v.npy", inputs, EncoderFacts.of(encoder), Options(8, 2)) as job:
        work, task = list(job.pending()), pickle.loads(pickle.dumps(job.task()))
        for worker in (0, 1):
            task.run(worker, encoder, Inputs.open(job.share_inputs()), iter(work[worker::2]), Link(int, str))
        with pytest.raises(TclError, match="File exists"):  # nobody writes to the journal of another
            task.run(1, encoder, inputs, iter(work[:1]), Link(int, str))
        assert job.state() == "13 of 13 batches are done"
        job.finish()
    assert encoder.calls == 13 and files(place) == whole()


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
    for encoder, message in (
        (other_model, r"model \(0123456789ab then, ffffffffffff now\)"),
        (
            replace(other_model, model_hash=ProjectionEncoder.model_hash, precision="fp16"),
            r"other precision \(fp32 then",
        ),
        (
            replace(other_model, model_hash=ProjectionEncoder.model_hash, backend="onnx"),
            r"other backend \(numpy-cpu then",
        ),
        (Other(make_processor(64)), "other preprocessing$"),
    ):
        with pytest.raises(UsageError, match=message):
            embed(list_inputs(str(own)), encoder, out, batch_size=8)
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
    Output(out).check()
    assert run(images, out, processor).calls == 13 - 5
    assert files(place) == before
    with pytest.raises(UsageError, match="exists"):
        Output(out).check()
    with pytest.raises(UsageError, match="exists"):
        run(images, out, processor)


def test_a_job_does_not_go_on_where_other_vectors_are_by_now(images: Path, place: Path, processor: Any) -> None:
    """It would only be refused at its end."""
    killed(images, place / "v.npy", processor, 5)
    other = {"v.npy": b"other", "v.meta.json": b"{}"}
    for name, content in other.items():
        (place / name).write_bytes(content)
    encoder = Stopping(processor)
    with pytest.raises(UsageError, match=r"v\.npy: exists"):
        embed(list_inputs(str(images)), encoder, place / "v.npy", batch_size=8)
    assert encoder.calls == 0 and files_only(place) == other
    for name in other:
        (place / name).unlink()
    assert run(images, place / "v.npy", processor).calls == 13 - 5


def files_only(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_job_file_that_cannot_be_read(images: Path, place: Path, processor: Any) -> None:
    killed(images, place / "v.npy", processor, 5)
    (place / "v.npy.partial" / "job.json").write_text("{")
    with pytest.raises(UsageError, match=r"job\.json: damaged: "):
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


def test_a_folder_that_is_removed_meanwhile(images: Path, place: Path, processor: Any) -> None:
    encoder = Stopping(processor)
    encode = encoder.encode_image

    def clean_up(pixels: Any) -> Any:
        if encoder.calls == 3:
            shutil.rmtree(place / "v.npy.partial")
        return encode(pixels)

    encoder.encode_image = clean_up  # type: ignore[method-assign]
    with pytest.raises(TclError, match=r"v\.npy\.partial: cannot be written: No such file"):
        embed(list_inputs(str(images)), encoder, place / "v.npy", batch_size=8)
    assert run(images, place / "v.npy", processor).calls == 13


def test_a_disk_that_goes_away(images: Path, place: Path, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*parts: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(embed_job.VectorStore, "write", write)
    with pytest.raises(TclError, match="cannot be written: Input/output error"):
        run(images, place / "v.npy", processor)


def test_killed_at_random(tmp_path: Path) -> None:
    """Real processes, real SIGKILL; how many of the five come before the end depends on the machine."""
    figures = kill_often(tmp_path, 160, kills=5, lanes=2)
    assert figures["kills"] >= 1 and figures["identical"]
    assert 0 <= figures["encoded_twice"] <= figures["allowed_twice"]
