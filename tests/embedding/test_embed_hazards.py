"""What goes wrong around a job: full disks, sources that vanish, kills at bad moments, two jobs with one name."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.data.inputs.listing import Inputs, list_inputs
from tcl.embedding import folder as job_folder
from tcl.embedding import job as finish_module
from tcl.embedding import journal as store_module
from tcl.embedding import parts as parts_module
from tcl.embedding import ray as ray_engine
from tcl.embedding.folder import lock
from tcl.embedding.journal import VectorStore
from tcl.embedding.parts import Output
from tcl.embedding.plan import EncoderFacts, Options
from tcl.embedding.run import embed, run_embedding
from tcl.errors import DataError, TclError, UsageError
from tcl.files.cache import CacheError
from tests.data.files import png
from tests.open_files import open_files

IMAGES = 20


class Killed(BaseException):
    """Stands for SIGKILL where a test chooses the moment."""


@pytest.fixture(autouse=True)
def nothing_stays_open(tmp_path: Path) -> Iterator[None]:
    yield
    assert not open_files(tmp_path)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", IMAGES)


class Meanwhile(ProjectionEncoder):
    """Something happens at the second batch."""

    happens: Callable[[], object]
    calls = 0

    def encode_image(self, pixel_values: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            self.happens()
        return super().encode_image(pixel_values)


def meanwhile(processor: Any, happens: Callable[[], object]) -> Meanwhile:
    encoder = Meanwhile(processor)
    encoder.happens = happens
    return encoder


def stop() -> None:
    raise Killed


def to_parts(
    inputs: Inputs, out: Path, encoder: Any, restart: bool = False, resume: bool = False, **changed: Any
) -> Any:
    output = Output(out, True, changed.pop("shard_rows", 8), changed.pop("suffix", ".npy"))
    output.check(restart, resume)
    begin = changed.pop("begin", lambda facts, done, state: nullcontext(lambda count: None))
    return run_embedding(
        inputs,
        output,
        Options(batch_size=4, workers=1, **changed),
        lambda device: encoder,
        restart=restart,
        resume=resume,
        begin=begin,
    )


# --- sources -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_a_full_cache_stops_the_job(processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/hazard/a.jpg", b"x")
    monkeypatch.setenv("TCL_CACHE", "/dev/full")
    with pytest.raises(CacheError, match="cannot write to the cache folder"):
        embed(list_inputs("memory://hazard/a.jpg"), ProjectionEncoder(processor), tmp_path / "v.npy")
    system.rm("/hazard", recursive=True)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_credentials_of_urls_reach_no_file(suffix: str, processor: Any, tmp_path: Path) -> None:
    system, names = fsspec.filesystem("memory"), ("good.png?token=S3CR3T", "bad.png?X-Amz-Signature=S3CR3T")
    for name, data in zip(names, (png(8, 8), b"x"), strict=True):
        system.pipe(f"/secret/{name}", data)
    rows = [{"image": f"memory://secret/{name}"} for name in names] + [
        {"image": "http://user:S3CR3T@localhost/a.png"},
        {"image": "memory://secret/good.png?token=S3CR3T", "id": "named"},
    ]
    for number, source in enumerate((rows[:3], rows[3:])):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in source))
        out = tmp_path / f"out{number}" / f"v{suffix}"
        out.parent.mkdir()
        embed(list_inputs(str(tmp_path / "rows.jsonl")), ProjectionEncoder(processor), out)
        written = b"".join(path.read_bytes() for path in out.parent.rglob("*") if path.is_file())
        assert b"S3CR3T" not in written and (number or b"***" in written)
    system.rm("/secret", recursive=True)


def as_list(images: Path) -> tuple[str, Path]:
    source = images.with_name("list.txt")
    source.write_text("".join(f"{images}/{name}.png\n" for name in range(IMAGES)))
    return str(source), images


def as_shard(images: Path) -> tuple[str, Path]:
    shard = images.with_name("shards") / "a.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as file:
        for name in range(IMAGES):
            file.add(images / f"{name}.png", f"{name}.png")
    (shard.parent / "other.txt").touch()
    return str(shard), shard


@pytest.mark.parametrize("make", [as_list, as_shard])
def test_what_holds_the_images_goes_away(
    make: Callable[[Path], tuple[str, Path]], images: Path, processor: Any, tmp_path: Path
) -> None:
    """A folder of absolute paths, or a shard."""
    source, place = make(images)
    away = tmp_path / "away"

    def unmount() -> None:
        place.rename(away)

    with pytest.raises(DataError, match=f"{place.name}: has gone") as caught:
        embed(list_inputs(source), meanwhile(processor, unmount), tmp_path / "v.npy", batch_size=4, workers=1)
    assert "the same command goes on" in str(caught.value.hint)
    away.rename(place)
    assert embed(list_inputs(source), ProjectionEncoder(processor), tmp_path / "v.npy", batch_size=4).failed == 0


def test_what_was_never_there_is_no_reason_to_stop(images: Path, processor: Any, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    lines = [images / "0.png", tmp_path / "nowhere" / "1.png", tmp_path / "void" / "2.png"]
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in [*lines, "/a\0b/3.png"]))
    inputs = list_inputs(str(tmp_path / "list.txt"))
    inputs.save(tmp_path / "inputs.arrow")
    for number, again in enumerate((inputs, inputs.slice(0, 4), Inputs.open(tmp_path / "inputs.arrow"))):
        report = embed(again, ProjectionEncoder(processor), tmp_path / f"{number}.npy")
        assert (report.count, report.failed) == (1, 3)


def test_a_folder_whose_name_is_no_unicode(images: Path, tmp_path: Path) -> None:
    odd = images.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    with pytest.raises(UsageError, match="its name is not Unicode"):
        list_inputs(str(odd))


# --- kills and names -----------------------------------------------------------------------------------------------


def test_a_restart_of_parts_killed_while_it_removes(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, out, encoder = list_inputs(str(images)), tmp_path / "parts", ProjectionEncoder(processor)
    to_parts(inputs, out, encoder)
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    with monkeypatch.context() as patch:
        unlink, left = Path.unlink, [2]

        def dying(path: Path, missing_ok: bool = False) -> None:
            if path.parent == out:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            unlink(path, missing_ok)

        patch.setattr(Path, "unlink", dying)
        with pytest.raises(Killed):
            to_parts(inputs, out, encoder, restart=True)
    with pytest.raises(UsageError, match="holds"):
        to_parts(inputs, out, encoder, resume=True)
    to_parts(inputs, out, encoder, restart=True)
    (whole / "part-00001.npy").unlink()
    assert Output(whole, True).finished() is None and Output(out, True).finished() is not None


def test_a_restart_removes_the_hundred_thousandth_part_too(tmp_path: Path) -> None:
    for name in ("part-99999.npy", "part-100000.npy", "part-1.npy", "meta.json"):
        (tmp_path / name).touch()
    names = [path.name for path in parts_module._parts(tmp_path)]
    assert names[0] == "meta.json" and sorted(names[1:]) == ["part-100000.npy", "part-99999.npy"]


def leftover(images: Path, out: Path, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was killed in the midst of removing its folder."""

    clear_final = job_folder.clear_final

    def dying(folder: Path) -> None:
        if (folder / "final" / "complete.json").exists():
            raise Killed
        clear_final(folder)

    with monkeypatch.context() as patch:
        patch.setattr(job_folder, "clear_final", dying)
        with pytest.raises(Killed):
            embed(list_inputs(str(images)), ProjectionEncoder(processor), out, batch_size=4)
    assert out.exists() and not (out.with_name("v.npy.partial") / "job.json").exists()


def test_what_a_killed_removal_leaves_is_not_the_answer_of_another_command(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "v.npy"
    leftover(images, out, processor, monkeypatch)
    before = out.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        embed(list_inputs(str(images)), ProjectionEncoder(processor), out, batch_size=5)
    assert out.read_bytes() == before and not (tmp_path / "v.npy.partial").exists()
    out.unlink()
    (tmp_path / "v.ids.jsonl").unlink()
    (tmp_path / "v.meta.json").unlink()
    leftover(images, out, processor, monkeypatch)
    embed(list_inputs(str(images)), ProjectionEncoder(processor), out, batch_size=4)  # the command that was killed
    assert out.read_bytes() == before and not (tmp_path / "v.npy.partial").exists()


@pytest.mark.parametrize("restart", [False, True])
def test_vectors_that_came_meanwhile_are_not_replaced(
    images: Path, processor: Any, tmp_path: Path, restart: bool
) -> None:
    """Of the other format: they share their sidecar files."""
    inputs = list_inputs(str(images))
    (tmp_path / "else").mkdir()
    embed(inputs, ProjectionEncoder(processor), tmp_path / "else" / "v.npy", batch_size=4)

    def other() -> None:
        for path in (tmp_path / "else").iterdir():
            shutil.copy(path, tmp_path)

    encoder = meanwhile(processor, other)
    with pytest.raises(UsageError, match=r"v\.npy: exists by now"):
        embed(inputs, encoder, tmp_path / "v.parquet", batch_size=4, workers=1, restart=restart)
    assert (tmp_path / "v.npy").exists() and (tmp_path / "v.ids.jsonl").exists()
    for path in tmp_path.glob("v.*"):
        if path.is_file():
            path.unlink()
    assert embed(inputs, ProjectionEncoder(processor), tmp_path / "v.parquet", batch_size=4).resumed == IMAGES


@pytest.mark.parametrize(("first", "second"), [("v.npy", "v.parquet"), ("v.parquet", "v.npy")])
def test_two_formats_of_one_name_at_once(images: Path, processor: Any, tmp_path: Path, first: str, second: str) -> None:
    """Both would publish `v.meta.json`; the second one is refused, and leaves nothing."""
    inputs, refused = list_inputs(str(images)), []

    def other() -> None:
        for restart in (False, True):
            with pytest.raises(UsageError, match=f"{second}: another process is writing .*{first}") as caught:
                embed(inputs, ProjectionEncoder(processor), tmp_path / second, batch_size=4, restart=restart)
            refused.append(caught.value.hint)
        assert not (tmp_path / f"{second}.partial").exists()

    embed(inputs, meanwhile(processor, other), tmp_path / first, batch_size=4, workers=1)
    assert refused == ["wait for it, or choose another --out"] * 2
    assert (tmp_path / first).exists() and not (tmp_path / second).exists()


def test_a_job_that_was_begun_survives_that_the_other_format_is_being_written(
    images: Path, processor: Any, tmp_path: Path
) -> None:
    inputs = list_inputs(str(images))
    with pytest.raises(Killed):
        embed(inputs, meanwhile(processor, stop), tmp_path / "v.parquet", batch_size=4, workers=1)

    def other() -> None:
        with pytest.raises(UsageError, match="another process is writing"):
            embed(inputs, ProjectionEncoder(processor), tmp_path / "v.parquet", batch_size=4)

    embed(inputs, meanwhile(processor, other), tmp_path / "v.npy", batch_size=4, workers=1)
    for path in tmp_path.glob("v.*"):
        if path.is_file():
            path.unlink()
    assert embed(inputs, ProjectionEncoder(processor), tmp_path / "v.parquet", batch_size=4).resumed >= 4


def test_vectors_that_came_while_the_lock_was_waited_for(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path, out: Path) -> int:
        out.write_bytes(b"of another process")
        return lock(folder, out)

    monkeypatch.setattr("tcl.embedding.job.lock", late)
    with pytest.raises(UsageError, match=r"v\.npy: exists"):
        embed(list_inputs(str(images)), ProjectionEncoder(processor), tmp_path / "v.npy")
    assert not (tmp_path / "v.npy.partial").exists()


def test_a_lock_in_a_folder_that_has_gone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        lock(tmp_path / "gone" / "v.npy.partial", tmp_path / "gone" / "v.npy")


def test_nothing_is_left_of_parts_of_which_nothing_is_done(images: Path, processor: Any, tmp_path: Path) -> None:
    encoder, out = ProjectionEncoder(processor), tmp_path / "parts"
    encoder.encode_image = lambda pixels: stop()  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(Killed):
        to_parts(list_inputs(str(images)), out, encoder)
    assert not out.exists()

    def meanwhile(pixels: Any) -> Any:
        (out / "thesis.txt").touch()
        stop()

    encoder.encode_image = meanwhile  # type: ignore[method-assign]
    with pytest.raises(Killed):
        to_parts(list_inputs(str(images)), out, encoder)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    for path in images.iterdir():
        path.write_bytes(b"no image")
    (out / "thesis.txt").unlink()

    def begin(*facts: Any) -> Any:
        (out / "thesis.txt").touch()
        return nullcontext(lambda count: None)

    with pytest.raises(DataError, match="none of the 20 inputs"):
        to_parts(list_inputs(str(images)), out, encoder, begin=begin)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


# --- what was asked for --------------------------------------------------------------------------------------------


def test_finished_parts_of_another_layout_are_not_complete(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs, encoder = list_inputs(str(images)), ProjectionEncoder(processor)
    to_parts(inputs, tmp_path / "parts", encoder)
    with pytest.raises(UsageError, match=r"shard rows \(8 then, 7 now\)"):
        to_parts(inputs, tmp_path / "parts", encoder, resume=True, shard_rows=7)
    with pytest.raises(UsageError, match=r"format \(npy then, parquet now\)"):
        to_parts(inputs, tmp_path / "parts", encoder, resume=True, suffix=".parquet")


def test_failures_that_were_skipped_are_not_accepted_later(images: Path, processor: Any, tmp_path: Path) -> None:
    """By `--on-error fail`: of batches, of parts, and of finished vectors."""
    (images / "2.png").write_bytes(b"no image")
    inputs, out, encoder = list_inputs(str(images)), tmp_path / "parts", ProjectionEncoder(processor)
    with pytest.raises(Killed):
        embed(inputs, meanwhile(processor, stop), tmp_path / "v.npy", batch_size=4, workers=1)
    with pytest.raises(DataError, match=r"2\.png: not an image"):
        embed(inputs, encoder, tmp_path / "v.npy", batch_size=4, on_error="fail")
    assert embed(inputs, encoder, tmp_path / "v.npy", batch_size=4).resumed >= 4

    third = meanwhile(processor, lambda: None)
    third.encode_image = _stopping_at(third, 3)  # type: ignore[assignment, method-assign]
    with pytest.raises(Killed):
        to_parts(inputs, out, third)
    with pytest.raises(DataError, match=r"part-00000\.npy: 1 inputs have no vector"):
        to_parts(inputs, out, encoder, on_error="fail")
    to_parts(inputs, out, encoder)
    with pytest.raises(DataError, match="1 inputs have no vector") as caught:
        to_parts(inputs, out, encoder, resume=True, on_error="fail")
    assert "--on-error skip" in str(caught.value.hint)


def _stopping_at(encoder: Any, number: int) -> Callable[[Any], Any]:
    encode, calls = encoder.encode_image, [0]

    def encode_image(pixels: Any) -> Any:
        calls[0] += 1
        return stop() if calls[0] == number else encode(pixels)

    return encode_image


def test_the_meta_file_names_the_resizer(images: Path, processor: Any, tmp_path: Path) -> None:
    embed(list_inputs(str(images)), ProjectionEncoder(processor), tmp_path / "v.npy")
    preprocessing = json.loads((tmp_path / "v.meta.json").read_text())["preprocessing"]
    assert preprocessing["resizer"] == "pillow" and "1/8" in preprocessing["jpeg"]
    encoder = replace(ProjectionEncoder(processor), backend="torch-cpu")
    assert EncoderFacts.of(encoder).preprocessing["resizer"] == "torch"


# --- reading vectors back ------------------------------------------------------------------------------------------


def test_reads_that_give_less_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VectorStore(tmp_path, 4, None)
    vectors = np.arange(40, dtype=np.float32).reshape(10, 4)
    checksum = store.write([(0, 10)], vectors, None)
    monkeypatch.setattr(store_module, "_READ_BYTES", 7)
    np.testing.assert_array_equal(store.vectors(2, 10), vectors[2:])
    assert store.checksum([(0, 10)]) == checksum and store.checksum([(5, 6)]) is None
    with pytest.raises(OSError, match="ends before row 11"):
        store.vectors(0, 11)
    store.close()


def test_the_last_inputs_may_have_no_vector(images: Path, processor: Any, tmp_path: Path) -> None:
    (images / f"{IMAGES - 1}.png").write_bytes(b"no image")
    report = embed(list_inputs(str(images)), ProjectionEncoder(processor), tmp_path / "v.npy", batch_size=6)
    assert (report.count, report.failed) == (IMAGES - 1, 1)


def test_recall_compares_few_rows_at_once() -> None:
    rows = np.arange(6000, dtype=np.float32).reshape(3000, 2)
    parts = list(finish_module._slices(iter([rows[:2500], rows[2500:]])))
    assert max(map(len, parts)) == 1024
    np.testing.assert_array_equal(np.concatenate(parts), rows)


# --- Ray actors ----------------------------------------------------------------------------------------------------


def test_an_actor_that_computes_otherwise_does_nothing(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs = list_inputs(str(images))
    inputs.save(tmp_path / "inputs.arrow")
    facts = EncoderFacts.of(ProjectionEncoder(processor))

    def make(device: str) -> Any:
        return replace(ProjectionEncoder(processor), precision="fp16")

    def broken(device: str) -> Any:
        raise TclError("no weights here")

    for encoder, message in ((make, "do not compute alike"), (broken, "no weights here")):
        opened = lambda encoder=encoder: ray_engine._examined(encoder, "cpu", EncoderFacts.of, facts)  # noqa: E731
        actor = ray_engine._PartActor(opened, None, str(tmp_path / "inputs.arrow"))  # type: ignore[arg-type]
        assert message in actor({"part": 0})["message"]


def test_machines_of_a_cluster_that_have_died_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    workers = ray_engine.RayWorkers.__new__(ray_engine.RayWorkers)
    assert workers._place(["auto"]) == (1, "cpu")
