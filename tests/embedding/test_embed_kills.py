"""A job may be killed at any moment, again and again: what has its name is complete, and the end has the same bytes.

Here the process only seems to die: from a chosen moment on, nothing it does reaches the disk. Real processes are killed
in `test_embed_job.py`.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.data.inputs.listing import Inputs, list_inputs
from tcl.embedding.folder import is_complete
from tcl.embedding.parts import Output
from tcl.embedding.plan import Options
from tcl.embedding.run import EmbedReport, run_embedding
from tcl.vectors.files import partial_folder
from tests.open_files import open_files

WRITES = ("write", "pwrite")
CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir")
WORDS = ["a", "red", "circle", "left", "of", "blue", "square"]

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="cannot see what a process has open")


class Killed(BaseException):
    """Stands for SIGKILL."""


class Disk:
    """The process may die before whatever changes the disk, and in the midst of a write."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str, str]] = []  # what was called, with which file, and the new name of it
        self.die_at(0)
        for name in (*WRITES, *CHANGES):
            patch.setattr(os, name, self._mortal(name, getattr(os, name)))
        patch.setattr(os, "fsync", lambda file: self.events.append(("fsync", _path(file), "")))

    def die_at(self, moment: int) -> None:
        """Counted from 1; never at 0."""
        self._left, self._dead = moment, False

    def live(self) -> None:
        """Raises once the process is dead: it does nothing any more."""
        if self._dead:
            raise Killed

    def _moment(self) -> None:
        self._left -= 1
        self._dead |= self._left == 0
        self.live()

    def _mortal(self, name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *others: Any, **options: Any) -> Any:
            self._moment()
            if name in WRITES:
                if self._left == 1:
                    change(file, others[0][: len(others[0]) // 2], *others[1:])
                self._moment()
            self.events.append((name, _path(file), os.fspath(others[0]) if name in ("replace", "rename") else ""))
            return change(file, *others, **options)

        return call

    def close(self, place: Path) -> None:
        """What the system does for a dead process; here these are its locks."""
        self.die_at(0)
        for descriptor in open_files(place):
            os.close(descriptor)


def _path(file: Any) -> str:
    return os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)


class Counting(ProjectionEncoder):
    calls = 0
    live: Callable[[], None] = staticmethod(lambda: None)

    def _project(self, features: Any) -> Any:
        self.live()
        self.calls += 1
        return super()._project(features)


@dataclass
class Job:
    """A command that is given over and over."""

    inputs: Inputs
    options: Options
    name: str = "v.npy"
    parts: bool = False

    def output(self, folder: Path) -> Output:
        return Output(folder / self.name, self.parts, shard_rows=12)

    def run(self, folder: Path, encoder: Counting) -> EmbedReport:
        progress = []

        def begin(facts: Any, done: int, state: Any) -> Any:
            encoder.calls = 0  # what comes before only asks for the size of the tokens
            progress.append(done)
            return nullcontext(progress.append)

        folder.mkdir(exist_ok=True)
        report = run_embedding(
            self.inputs, self.output(folder), self.options, lambda device: encoder, begin=begin, resume=True
        )
        assert not progress or sum(progress) == len(self.inputs)
        return report

    def files(self, folder: Path) -> dict[str, bytes]:
        """Those that have their final names; what is on its way has other ones."""
        place = folder / self.name if self.parts else folder
        found = place.iterdir() if place.exists() else ()
        return {path.name: path.read_bytes() for path in sorted(found) if path.is_file() and path.name[0] != "."}


def texts(folder: Path) -> Inputs:
    """Of such lengths that rows of a batch are neighbours or far apart, and in no order; some have no words."""
    lines = [" ".join(WORDS[: 1 + min(row % 7, 4)]) if row % 9 != 4 else "!!!" for row in range(14)]
    (folder / "texts.txt").write_text("".join(f"{line}\n" for line in lines))
    return list_inputs(str(folder / "texts.txt"))


def images(folder: Path) -> Inputs:
    place = make_images(folder / "images", 11)
    for number in (2, 3, 8):
        (place / f"{number}.png").write_bytes(b"no image")
    return list_inputs(str(place))


JOBS = {
    "texts": lambda folder: Job(texts(folder), Options(4, 1)),
    "tokens": lambda folder: Job(images(folder), Options(4, 1, dtype="int8", keep_tokens=True)),
    "parts": lambda folder: Job(texts(folder), Options(3, 1), "parts", parts=True),
}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("kind", JOBS)
def test_killed_at_every_moment(kind: str, tmp_path: Path, disk: Disk) -> None:
    job, encoder = JOBS[kind](tmp_path), Counting(make_processor())
    encoder.live = disk.live
    job.run(tmp_path / "whole", encoder)
    expected, batches, moment = job.files(tmp_path / "whole"), encoder.calls, 0
    while True:
        moment += 1
        place = tmp_path / str(moment)
        encoded, deaths = 0, 0
        while job.output(place).finished() is None:
            complete = not job.parts and is_complete(partial_folder(place / job.name))
            encoder.calls = 0
            disk.die_at({0: moment, 1: 7 * moment % 41 if moment % 3 else 0}.get(deaths, 0))
            try:
                job.run(place, encoder)
            except Killed:
                deaths += 1
            disk.close(place)
            encoded += encoder.calls
            assert not complete or not encoder.calls, moment
            assert job.files(place).items() <= expected.items(), moment
        assert job.files(place) == expected, moment
        assert encoded <= batches + 2 * deaths, moment
        if not deaths:
            break
        shutil.rmtree(place)
    left = [path.name for path in place.rglob("*") if path.name not in expected and path.name != job.name]
    assert not left and moment > 40


@pytest.mark.parametrize(("kind", "names"), [("texts", ["vectors.f32"]), ("tokens", ["vectors.f32", "tokens.f16"])])
def test_no_row_is_lost_unnoticed(kind: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of vectors or tokens, whichever rows were computed together with it."""
    job, encoder, place = JOBS[kind](tmp_path), Counting(make_processor()), tmp_path / "killed"
    job.run(tmp_path / "whole", encoder)
    expected = job.files(tmp_path / "whole")

    def die(*parts: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("tcl.embedding.job.write_final", die)
        job.run(place, encoder)
    errors = expected["v.errors.jsonl"].decode()
    rows = [row for row, id_ in enumerate(job.inputs.ids) if f'"{id_}"' not in errors]
    for name, row in itertools.product(names, rows):
        again = shutil.copytree(place, tmp_path / f"{name} {row}")
        content = bytearray((again / "v.npy.partial" / name).read_bytes())
        content[len(content) // (rows[-1] + 1) * row] ^= 1
        (again / "v.npy.partial" / name).write_bytes(content)
        job.run(again, encoder)
        assert job.files(again) == expected and encoder.calls == 1


@pytest.mark.parametrize("kind", ["texts", "parts"])
def test_names_outlast_a_power_cut(kind: str, tmp_path: Path, disk: Disk) -> None:
    """Contents are on the disk before their names are, and names before the job is forgotten that could make them."""
    job = JOBS[kind](tmp_path)
    job.run(tmp_path / "whole", Counting(make_processor()))
    names = job.files(tmp_path / "whole")
    for number, (call, place, new) in enumerate(disk.events):
        if call == "replace" and Path(new).name in names and Path(new).parent.name != "final":
            before = disk.events[:number]
            assert ("fsync", place, "") in before or ("fsync", str(Path(place).parent), "") in before
            after = disk.events[number:]
            synced = after.index(("fsync", str(Path(new).parent), ""))
            assert not [event for event in after[:synced] if event[1].endswith("job.json")]
            names.pop(Path(new).name)
    assert not names


def test_a_system_that_writes_less_than_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JOBS["tokens"](tmp_path)
    job.run(tmp_path / "whole", Counting(make_processor()))
    for name in WRITES:
        write = getattr(os, name)
        monkeypatch.setattr(os, name, lambda file, content, *at, write=write: write(file, content[:50], *at))
    job.run(tmp_path / "slow", Counting(make_processor()))
    assert job.files(tmp_path / "slow") == job.files(tmp_path / "whole")
