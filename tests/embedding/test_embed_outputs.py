"""Files of every type: what a value is, what it costs, and folders of parts that are jobs of their own."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from benchmarks.synthetic import ProjectionEncoder, make_images, make_processor
from tcl.data.inputs.listing import Inputs, list_inputs
from tcl.embedding.parts import Output, is_parts_output
from tcl.embedding.pipeline import Link
from tcl.embedding.plan import EncoderFacts, Options
from tcl.embedding.run import EmbedReport, embed, run_embedding
from tcl.errors import DataError, TclError, UsageError
from tcl.machine.devices import parse_devices
from tcl.vectors import writer as vector_writer
from tcl.vectors.dtypes import quantise
from tcl.vectors.writer import VectorWriter


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images") / "images", 100)


def unit(rows: int, dim: int = 12, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize(
    ("dtype", "kind", "width"), [("float16", "float16", 16), ("int8", "int8", 16), ("binary", "uint8", 2)]
)
def test_types_on_disk(
    images: Path, processor: Any, tmp_path: Path, suffix: str, dtype: Any, kind: str, width: int
) -> None:
    inputs = list_inputs(str(images))
    embed(inputs, ProjectionEncoder(processor), tmp_path / "exact.npy")
    report = embed(inputs, ProjectionEncoder(processor), tmp_path / f"v{suffix}", dtype=dtype)
    exact = np.load(tmp_path / "exact.npy")
    meta = json.loads((tmp_path / "v.meta.json").read_text())
    if suffix == ".npy":
        stored = np.load(tmp_path / "v.npy")
    else:
        table = parquet.read_table(tmp_path / "v.parquet")
        stored = np.array(table["vector"].to_pylist()).astype(kind)
        assert (
            table["id"].to_pylist()[:2] == ["0.png", "1.png"] and table.schema.field("vector").type.list_size == width
        )
    assert stored.dtype == kind and stored.shape == (99, width)
    scale = np.array(meta["scale"], np.float32) if dtype == "int8" else None
    np.testing.assert_array_equal(stored, quantise(exact, dtype, scale))
    assert meta["dim"] == 16 and meta["dtype"] == dtype and meta["recall_queries"] == 99
    assert report.recall_at_10 == meta["recall_at_10"]
    assert report.recall_at_10 is not None and 0.2 < report.recall_at_10 <= 1
    assert "recall_at_10" not in json.loads((tmp_path / "exact.meta.json").read_text())


def test_row_groups_have_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of the batches."""
    monkeypatch.setattr(vector_writer, "ROW_GROUP_BYTES", 12 * 4 * 40)
    vectors = unit(250)
    writer = VectorWriter(tmp_path / "v.parquet", 12, "float32", "path")
    for start, stop in ((0, 3), (3, 99), (99, 99), (99, 250)):
        names = [str(row) for row in range(start, stop)]
        writer.append(names, names, vectors[start:stop])
    writer.finish({})
    file = parquet.ParquetFile(tmp_path / "v.parquet")
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert groups == [40] * 6 + [10]
    np.testing.assert_array_equal(np.array(file.read()["vector"].to_pylist(), np.float32), vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.meta.json", "v.parquet"]


def test_tokens(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs = list_inputs(str(images))
    embed(inputs, ProjectionEncoder(processor), tmp_path / "v.npy", keep_tokens=True, batch_size=8)
    tokens, vectors = np.load(tmp_path / "v.tokens.npy"), np.load(tmp_path / "v.npy")
    assert tokens.shape == (99, 4, 16) and tokens.dtype == np.float16
    np.testing.assert_array_equal(tokens[:, 2], (3 * vectors).astype(np.float16))
    assert json.loads((tmp_path / "v.meta.json").read_text())["token_shape"] == [4, 16]


def test_tokens_that_are_not_there(images: Path, processor: Any, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a red circle\n")
    with pytest.raises(UsageError, match="these are texts"):
        embed(list_inputs(str(tmp_path / "t.txt")), ProjectionEncoder(processor), tmp_path / "v.npy", keep_tokens=True)

    class Plain:
        embed_dim, processor, model_hash, backend, precision, lanes = 16, None, "0" * 64, "plain", "fp32", 1

    plain = Plain()
    plain.processor = processor
    with pytest.raises(UsageError, match="plain gives no image tokens"):
        embed(list_inputs(str(images)), plain, tmp_path / "v.npy", keep_tokens=True)  # type: ignore[arg-type]


# --- folders of parts --------------------------------------------------------------------------------------------


def make_encoder(processor: Any, log: Path, device: str) -> ProjectionEncoder:
    return ProjectionEncoder(processor, log=log)


def run(inputs: Inputs, out: Path, make: Any, devices: str = "auto", **options: Any) -> EmbedReport:
    output = Output(out, True, options.pop("shard_rows", 30), options.pop("suffix", ".npy"))
    restart, resume = options.pop("restart", False), options.pop("resume", False)
    output.check(restart, resume)
    return run_embedding(
        inputs,
        output,
        Options(batch_size=8, workers=1, **options),
        make,
        parse_devices(devices),
        restart=restart,
        resume=resume,
        begin=lambda facts, done, state: nullcontext(lambda count: None),
    )


def test_parts(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs = list_inputs(str(images))
    embed(inputs, ProjectionEncoder(processor), tmp_path / "v.npy", batch_size=8)
    report = run(inputs, tmp_path / "parts", lambda device: ProjectionEncoder(processor))
    assert (report.count, report.failed) == (99, 1)
    meta = json.loads((tmp_path / "parts" / "meta.json").read_text())
    assert [part["file"] for part in meta["parts"]] == [f"part-{number:05d}.npy" for number in range(4)]
    assert [part["count"] for part in meta["parts"]] == [30, 30, 30, 9] and (meta["count"], meta["failed"]) == (99, 1)
    together = np.concatenate([np.load(tmp_path / "parts" / part["file"]) for part in meta["parts"]])
    np.testing.assert_array_equal(together, np.load(tmp_path / "v.npy"))
    ids = [(tmp_path / "parts" / f"part-{number:05d}.ids.jsonl").read_text() for number in range(4)]
    assert "".join(ids) == (tmp_path / "v.ids.jsonl").read_text()
    assert not list((tmp_path / "parts").glob(".*")) and not list((tmp_path / "parts").glob("*.partial"))


def test_what_the_meta_file_of_parts_says(processor: Any, tmp_path: Path) -> None:
    """Of all parts together, for people to read too."""
    for number, (images, shard_rows) in enumerate(((40, 15), (12, 100), (2, 1), (1, 1))):
        inputs, out = list_inputs(str(make_images(tmp_path / f"{images} images", images))), tmp_path / f"{number}"
        report = run(inputs, out, lambda device: ProjectionEncoder(processor), dtype="binary", shard_rows=shard_rows)
        text = (out / "meta.json").read_text()
        meta = json.loads(text)
        assert text == json.dumps(meta, indent=2) + "\n" and meta["shard_rows"] == shard_rows
        parts = [json.loads(path.read_text()) for path in sorted(out.glob("part-*.meta.json"))]
        queries = sum(part["recall_queries"] for part in parts)
        found = sum(part["recall_queries"] * part["recall_at_10"] for part in parts)
        assert meta["recall_queries"] == queries == (images if shard_rows > 1 else 0)
        assert report.recall_at_10 == meta["recall_at_10"] == (round(found / queries, 4) if queries else 1.0)


def test_a_restart_of_parts_removes_its_own_alone(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs, out = list_inputs(str(images)), tmp_path / "parts"
    run(inputs, tmp_path / "whole", lambda device: ProjectionEncoder(processor), shard_rows=60)

    class Stopping(ProjectionEncoder):
        calls = 0

        def encode_image(self, pixel_values: Any) -> Any:
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().encode_image(pixel_values)

    with pytest.raises(KeyboardInterrupt):
        run(inputs, out, lambda device: Stopping(processor))
    assert (out / "part-00001.npy.partial").is_dir()
    foreign = {name: name.encode() for name in ("notes.txt", "part-00000", "part-1.npy", "part-list.txt")}
    for name, content in foreign.items():
        (out / name).write_bytes(content)
    run(inputs, out, lambda device: ProjectionEncoder(processor), shard_rows=60, restart=True)
    assert files(out) == files(tmp_path / "whole") | foreign
    for again in (True, False):
        with pytest.raises(UsageError, match=r"exists" if not again else r"holds notes\.txt"):
            run(inputs, out, lambda device: ProjectionEncoder(processor), restart=again)
    assert files(out) == files(tmp_path / "whole") | foreign


def test_a_folder_of_parts_that_cannot_be(processor: Any, tmp_path: Path) -> None:
    """Is refused before a model is loaded; one that can is not created yet."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        Output(tmp_path / "file" / "parts", True).check()
    Output(tmp_path / "new", True).check()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_parts_for_processes_elsewhere(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have another working folder, and get everything by pickle; by default a part has 100,000 inputs."""
    inputs, encoder = list_inputs(str(images)), ProjectionEncoder(processor)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    facts = EncoderFacts.of(encoder)
    with Output(Path("parts"), True).open(inputs, facts, Options(8, 1), restart=False) as job:
        work, shared, task = list(job.pending()), job.share_inputs().absolute(), pickle.dumps(job.task())
        monkeypatch.chdir(tmp_path / "elsewhere")
        pickle.loads(task).run(1, encoder, Inputs.open(shared), iter(work), Link(int, str))
        monkeypatch.chdir(tmp_path)
        assert (job.state(), job.rows_done) == ("1 of 1 parts are done", 100)
        assert job.finish()["shard_rows"] == 100_000
    assert np.load("parts/part-00000.npy").shape == (99, 16)


def test_a_finished_folder(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs = list_inputs(str(images))
    make: Any = lambda device: ProjectionEncoder(processor)  # noqa: E731
    run(inputs, tmp_path / "parts", make)
    before = files(tmp_path / "parts")
    with pytest.raises(UsageError, match="exists"):
        run(inputs, tmp_path / "parts", make)
    report = run(inputs, tmp_path / "parts", make, resume=True)
    assert (report.count, report.resumed, report.bottleneck) == (99, 100, "")
    with pytest.raises(UsageError, match="with other dtype"):
        run(inputs, tmp_path / "parts", make, resume=True, dtype="int8")
    run(inputs, tmp_path / "parts", make, restart=True, dtype="float16", shard_rows=60)
    assert len(list((tmp_path / "parts").glob("part-*.npy"))) == 2
    run(inputs, tmp_path / "parts", make, restart=True)
    assert files(tmp_path / "parts") == before


class Killed(BaseException):
    """Stands for SIGKILL where a test chooses the moment."""


def kill(*_: object) -> None:
    raise Killed


def test_what_a_process_left_that_was_killed_just_before_its_end(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, parts = list_inputs(str(images)), tmp_path / "parts"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("tcl.embedding.parts.write_whole", kill)
        run(inputs, parts, lambda device: ProjectionEncoder(processor))
    (parts / "part-00001.npy.partial").mkdir()
    (parts / "part-00001.npy.partial" / "lock").touch()
    report = run(inputs, parts, lambda device: ProjectionEncoder(processor))
    assert report.count == 99 and not [*parts.glob(".*"), *parts.glob("*.partial")]


@pytest.mark.parametrize("parts", [False, True])
def test_what_is_finished(images: Path, processor: Any, tmp_path: Path, parts: bool) -> None:
    """Not what a job is about to replace, although it is all there."""
    output = Output(tmp_path / ("v" if parts else "v.npy"), parts, 30)

    def embed_all(encoder: Any, restart: bool = False) -> EmbedReport:
        return run_embedding(
            list_inputs(str(images)),
            output,
            Options(batch_size=8, workers=1),
            lambda device: encoder,
            restart=restart,
            begin=lambda facts, done, state: nullcontext(lambda count: None),
        )

    class Dying(ProjectionEncoder):
        calls = 0

        def encode_image(self, pixel_values: Any) -> Any:
            self.calls += 1
            return kill() if self.calls > 3 else super().encode_image(pixel_values)

    assert output.finished() is None
    output.check()
    embed_all(ProjectionEncoder(processor))
    found = output.finished()
    assert found is not None and found["count"] == 99
    with pytest.raises(UsageError, match="exists"):
        output.check()
    with pytest.raises(UsageError, match="exists"):
        output.check(restart=False, resume=False)
    output.check(resume=True)
    with pytest.raises(Killed):
        embed_all(Dying(processor), restart=True)
    assert output.finished() is None


def test_folders_that_are_something_else(images: Path, processor: Any, tmp_path: Path) -> None:
    inputs = list_inputs(str(images))
    make: Any = lambda device: ProjectionEncoder(processor)  # noqa: E731
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    for restart in (False, True):
        with pytest.raises(UsageError, match=r"holds thesis\.txt"):
            run(inputs, tmp_path / "mine", make, restart=restart)
    with pytest.raises(UsageError, match="is a file"):
        run(inputs, tmp_path / "mine" / "thesis.txt", make)
    assert files(tmp_path / "mine") == {"thesis.txt": b"do not lose"}


def test_a_part_may_be_empty_but_not_all(processor: Any, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 40)
    for number in range(30, 40):
        (folder / f"{number}.png").write_bytes(b"x")
    run(list_inputs(str(folder)), tmp_path / "parts", lambda device: ProjectionEncoder(processor), dtype="int8")
    assert np.load(tmp_path / "parts" / "part-00001.npy").shape == (0, 16)
    assert "scale" not in json.loads((tmp_path / "parts" / "meta.json").read_text())  # each part has its own
    for path in folder.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 40 inputs"):
        run(list_inputs(str(folder)), tmp_path / "none", lambda device: ProjectionEncoder(processor))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("out", "expected"), [("v.npy", False), ("v.parquet", False), ("v.txt", False), ("v", True), ("v.npy/", True)]
)
def test_what_is_a_folder_of_parts(out: str, expected: bool) -> None:
    assert is_parts_output(out) is expected


def test_parts_go_on(images: Path, processor: Any, tmp_path: Path) -> None:
    """In the middle of a part, on one device or two, with the same bytes."""
    inputs, log = list_inputs(str(images)), tmp_path / "log"
    run(inputs, tmp_path / "whole", lambda device: ProjectionEncoder(processor), dtype="int8", suffix=".parquet")

    class Stopping(ProjectionEncoder):
        left = 6

        def encode_image(self, pixel_values: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode_image(pixel_values)

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "parts", lambda device: Stopping(processor), dtype="int8", suffix=".parquet")
    assert (tmp_path / "parts" / "part-00000.parquet").exists() and not (tmp_path / "parts" / "meta.json").exists()
    for message, options in (("shard rows", {"shard_rows": 20}), ("format", {"suffix": ".npy"}), ("dtype", {})):
        with pytest.raises(UsageError, match=message):
            changed = {"suffix": ".parquet"} | ({"dtype": "int8"} | options if options else {})
            run(inputs, tmp_path / "parts", lambda device: ProjectionEncoder(processor), **changed)
    make = partial(make_encoder, processor, log)
    run(inputs, tmp_path / "parts", make, "cpu,cpu", dtype="int8", suffix=".parquet")
    assert log.stat().st_size == 3 * 4 + 2 - 6
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


# --- Ray -----------------------------------------------------------------------------------------------------------


def make_stopping(processor: Any, log: Path, marker: Path, device: str) -> ProjectionEncoder:
    """Fails in the second part, once."""

    class Stopping(ProjectionEncoder):
        def encode_image(self, pixel_values: Any) -> Any:
            if log.exists() and log.stat().st_size >= 6 and not marker.exists():
                marker.touch()
                raise TclError("the accelerator fell off the bus", hint="push it back")
            return super().encode_image(pixel_values)

    return Stopping(processor, log=log)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ray_workers_write_the_same_files(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where its processes find the functions above
    inputs, log = list_inputs(str(images)), tmp_path / "log"
    run(inputs, tmp_path / "whole", lambda device: ProjectionEncoder(processor))

    def on_ray(make: Any) -> EmbedReport:
        return run_embedding(
            inputs,
            Output(tmp_path / "parts", True, 30),
            Options(batch_size=8, workers=1),
            make,
            ["cpu", "cpu"],
            engine="ray",
            begin=lambda facts, done, state: nullcontext(lambda count: None),
        )

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(TclError, match="fell off the bus"):
            on_ray(partial(make_stopping, processor, log, tmp_path / "marker"))
        report = on_ray(partial(make_stopping, processor, log, tmp_path / "marker"))
        assert report.count == 99 and log.stat().st_size == 3 * 4 + 2
        assert files(tmp_path / "parts") == files(tmp_path / "whole")
    finally:
        ray.shutdown()


# --- the final files ---------------------------------------------------------------------------------------------


class NotFinite(ProjectionEncoder):
    """Some vectors are not finite: of long texts, and of dark images."""

    def encode_text(self, input_ids: Any, attention_mask: Any) -> Any:
        vectors = super().encode_text(input_ids, attention_mask)
        vectors[attention_mask.sum(axis=1) % 2 == 0] = np.nan
        return vectors

    def encode_image(self, pixel_values: Any) -> Any:
        vectors = super().encode_image(pixel_values)
        vectors[pixel_values.reshape(len(pixel_values), -1).mean(axis=1) < 127] = np.nan
        return vectors


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_final_files_do_not_depend_on_the_chunks_they_are_written_in(
    images: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: Any
) -> None:
    """With ids of their own, failures in several chunks, and a chunk that begins with one."""
    source = tmp_path / "rows.jsonl"
    names = [str(images / f"{number}.png") for number in range(100)]
    texts = [" ".join(["dog"] * (1 + 7 * number % 11)) for number in range(400)]
    rows = [{"id": f"row {number}", kind: value} for number, value in enumerate(names if kind == "image" else texts)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = list_inputs(str(source))
    embed(inputs, NotFinite(processor), tmp_path / "whole.npy", batch_size=2, dtype=dtype)
    monkeypatch.setattr("tcl.embedding.job.CHUNK_ROWS", 7)
    embed(inputs, NotFinite(processor), tmp_path / "parts.npy", batch_size=2, dtype=dtype)
    for name in ("npy", "ids.jsonl", "errors.jsonl"):
        assert (tmp_path / f"whole.{name}").read_bytes() == (tmp_path / f"parts.{name}").read_bytes(), name
    ids = [json.loads(line) for line in (tmp_path / "parts.ids.jsonl").read_text().splitlines()]
    failed = [json.loads(line)["id"] for line in (tmp_path / "parts.errors.jsonl").read_text().splitlines()]
    numbers = [int(row["id"].split()[1]) for row in ids]
    lost = [int(row_id.split()[1]) for row_id in failed]
    assert numbers == sorted(numbers) and lost == sorted(lost) and sorted(numbers + lost) == list(range(len(rows)))
    assert len(lost) > 10 and [row["text" if kind == "text" else "path"] for row in ids] == [
        rows[number][kind] for number in numbers
    ]
