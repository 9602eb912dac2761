"""A job removes what it wrote, and nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.data.inputs.listing import list_inputs
from tcl.embedding import job as embed_job
from tcl.embedding.parts import Output
from tcl.embedding.plan import Options
from tcl.embedding.run import embed, run_embedding
from tcl.errors import UsageError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", 4)


def embed_to(out: Path, images: Path, **options: Any) -> None:
    encoder = ProjectionEncoder(make_processor())
    inputs = list_inputs(str(images))
    if out.suffix:
        embed(inputs, encoder, out, **options)
    else:
        output = Output(out, True, 2, ".npy")
        output.check(**options)
        settings = Options(batch_size=2, workers=1)
        quiet = lambda facts, done, state: nullcontext(lambda count: None)  # noqa: E731
        run_embedding(inputs, output, settings, lambda device: encoder, begin=quiet, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("foreign", ["thesis.txt", "final/thesis.txt", "journal-0.jsonl/a.txt", "journal-copy.jsonl"])
def test_a_working_folder_with_foreign_files(tmp_path: Path, images: Path, foreign: str, restart: bool) -> None:
    file = tmp_path / "vecs.npy.partial" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("ten years of work")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"does not belong to a job of `tcl embed`") as caught:
        embed_to(tmp_path / "vecs.npy", images, restart=restart)
    assert "choose another --out" in str(caught.value.hint)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("out", ["vecs.npy", "vecs"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_working_folder_that_is_a_link(tmp_path: Path, images: Path, out: str, restart: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "job.json").write_text("mine")
    link = tmp_path / "vecs.npy.partial" if out == "vecs.npy" else tmp_path / "vecs" / ".partial"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"partial: is a link"):
        embed_to(tmp_path / out, images, restart=restart)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["part-00007.jpg", "part-00007.npy.bak", "part-1.npy", "notes.txt"])
def test_a_folder_of_parts_with_foreign_files(tmp_path: Path, images: Path, name: str) -> None:
    embed_to(tmp_path / "vecs", images)
    (tmp_path / "vecs" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"vecs: holds {name}"):
        embed_to(tmp_path / "vecs", images, restart=True)
    assert contents(tmp_path) == before


def test_foreign_files_that_come_while_a_job_runs_stay(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_final = embed_job.write_final

    def and_something_else(job: embed_job.FileJob) -> None:
        write_final(job)
        (tmp_path / "vecs.npy.partial" / "thesis.txt").write_text("mine")
        (tmp_path / "vecs.npy.partial" / "final" / "thesis.txt").write_text("mine")

    monkeypatch.setattr(embed_job, "write_final", and_something_else)
    embed_to(tmp_path / "vecs.npy", images)
    assert (tmp_path / "vecs.npy").is_file()
    assert sorted(contents(tmp_path / "vecs.npy.partial")) == ["final/thesis.txt", "thesis.txt"]


def test_the_working_folder_of_a_part_with_foreign_files(tmp_path: Path, images: Path) -> None:
    embed_to(tmp_path / "vecs", images)
    file = tmp_path / "vecs" / "part-00007.npy.partial" / "thesis.txt"
    file.parent.mkdir()
    file.write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"thesis\.txt: does not belong"):
        embed_to(tmp_path / "vecs", images, restart=True)
    assert contents(tmp_path) == before


def test_hidden_files_of_the_system_are_left_alone(tmp_path: Path, images: Path) -> None:
    """As a file browser or a network file system leaves them; they stop nothing."""
    hidden = tmp_path / "vecs.npy.partial" / ".DS_Store"
    hidden.parent.mkdir()
    hidden.write_text("system")
    embed_to(tmp_path / "vecs.npy", images)
    assert contents(tmp_path / "vecs.npy.partial") == {".DS_Store": b"system"}
