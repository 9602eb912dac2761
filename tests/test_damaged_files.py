"""Files of ours that something has damaged: each is read as if nothing were wrong, or answered by one line.

Damage is drawn with a fixed seed: bytes that change, files that are cut, values of JSON that become other ones.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcl.embedding.folder import continues
from tcl.embedding.journal import Ledger, VectorStore
from tcl.embedding.plan import BatchPlan
from tcl.encoders.bundle import read_bundle, read_graphs
from tcl.encoders.bundle_tar import unpacked
from tcl.encoders.onnx import OnnxEncoder
from tcl.errors import TclError
from tcl.report.records import read_records
from tcl.search.faiss import FaissCollection
from tcl.training.checkpoint import load_state
from tcl.training.preflight import count_stale, read_best
from tcl.training.runlog import RunLog
from tcl.vectors.reader import VectorFile
from tcl.weights.describe import describe
from tcl.weights.load import load_model

STORED = Path(__file__).parent / "compat"
EACH = 25  # damaged versions of each file
MANY = 20_000  # of all files together
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 10**6, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "a", "\0",
    "../..", "\ud800", [], {}, [[]], [None], {"": None}, "x" * 5000,
)  # fmt: skip


def open_vectors(path: Path) -> None:
    vectors = VectorFile.open(path)
    rows = [0, len(vectors) - 1] if len(vectors) else []
    vectors.take(rows)
    vectors.tokens(rows)
    for row in rows:
        assert isinstance(vectors.record(row)["id"], str)
    assert vectors.kind in ("image", "text") and vectors.files and vectors.belongings
    for _ in vectors.floats(64):
        pass


def go_on(folder: Path) -> None:
    """What the command does that goes on with a job."""
    wanted = json.loads((STORED / "jobs" / folder.name / "job.json").read_text())["fingerprint"]
    continues(folder, wanted, folder.with_suffix(""))
    plan, store = BatchPlan(24, 4, 1), VectorStore(folder, 16, None)
    try:
        ledger = Ledger(folder, plan, store)
        assert 0 <= ledger.rows_done <= 24
        list(ledger.entries(range(0, int(ledger.done.argmin()))))
    finally:
        store.close()


def open_bundle(folder: Path) -> None:
    read_bundle(folder)
    read_graphs(folder)
    OnnxEncoder(folder)


def resume(checkpoint: Path) -> None:
    load_state(checkpoint)
    describe(str(checkpoint))


def look_at_run(run: Path) -> None:
    read_best(run, 4)
    count_stale(run, 4)
    for record in read_records(run / "metrics.jsonl"):
        assert isinstance(record, dict)
    with RunLog(run, 4, None, None):  # type: ignore[arg-type]  # neither is told anything here
        pass


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "vectors/npy/float32.npy": ("vectors/npy/float32.npy", open_vectors),
    "vectors/npy/int8.meta.json": ("vectors/npy/int8.npy", open_vectors),
    "vectors/npy/binary.meta.json": ("vectors/npy/binary.npy", open_vectors),
    "vectors/npy/float32.ids.jsonl": ("vectors/npy/float32.npy", open_vectors),
    "vectors/tokens.tokens.npy": ("vectors/tokens.npy", open_vectors),
    "vectors/parquet/int8.parquet": ("vectors/parquet/int8.parquet", open_vectors),
    "vectors/parts/int8/meta.json": ("vectors/parts/int8", open_vectors),
    "vectors/hnsw.faiss.json": ("vectors/hnsw.faiss", FaissCollection),
    "jobs/file.npy.partial/job.json": ("jobs/file.npy.partial", go_on),
    "jobs/file.npy.partial/journal-0.jsonl": ("jobs/file.npy.partial", go_on),
    "bundle/bundle.json": ("bundle", open_bundle),
    "bundle/preprocess.json": ("bundle", open_bundle),
    "bundle.tar": ("bundle.tar", unpacked),
    "runs/tiny/model/config.json": ("runs/tiny", lambda run: load_model(str(run))),
    "runs/tiny/model/preprocess.json": ("runs/tiny", lambda run: load_model(str(run))),
    "runs/tiny/model/tokenizer.json": ("runs/tiny", lambda run: load_model(str(run))),
    "runs/tiny/model/model.safetensors": ("runs/tiny", lambda run: load_model(str(run))),
    "runs/killed/checkpoints/step-00000006/meta.json": ("runs/killed/checkpoints/step-00000006", resume),
    "runs/killed/checkpoints/step-00000006/train_state.pt": ("runs/killed/checkpoints/step-00000006", resume),
    "runs/killed/metrics.jsonl": ("runs/killed", look_at_run),
    "runs/killed/best.json": ("runs/killed", look_at_run),
}


def damaged(content: bytes, draw: random.Random, structured: bool) -> bytes:
    """One damaged version of a file."""
    kind = draw.choice(["value", "value", "value", "bytes", "cut", "text"] if structured else ["bytes", "cut", "head"])
    if kind == "value":
        lines = content.splitlines() if b"\n{" in content else [content]
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(with_other_value(json.loads(lines[place]), draw)).encode()
        return b"\n".join(lines) + b"\n"
    if kind == "cut":
        return content[: draw.randrange(len(content))]
    if kind == "text":
        return draw.choice([b"", b"null", b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"{" + content])
    changed = bytearray(content)
    end = min(len(changed), 512) if kind == "head" else len(changed)
    for _ in range(draw.choice([1, 2, 8, 64])):
        changed[draw.randrange(end)] = draw.randrange(256)
    return bytes(changed)


def with_other_value(value: Any, draw: random.Random) -> Any:
    """JSON in which one value, at any depth, is another one or is missing."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        rest = {name: inner for name, inner in value.items() if name != key}
        return rest if draw.random() < 0.15 else {**value, key: with_other_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], with_other_value(value[place], draw), *value[place + 1 :]]
    return draw.choice(VALUES)


def try_damage(name: str, folder: Path, count: int, seed: int) -> None:
    opened, read = READERS[name]
    source, path = STORED / name, folder / name
    whole = source.read_bytes() if source.is_file() else b'{"step": 4, "metric": "r_mean", "value": 0.5}\n'
    draw = random.Random(f"{name} {seed}")
    root = folder / Path(name).parts[0]
    (shutil.copytree if (STORED / root.name).is_dir() else shutil.copy)(STORED / root.name, root)
    for number in range(count):
        content = damaged(whole, draw, name.endswith((".json", ".jsonl")))
        path.write_bytes(content)
        try:
            read(folder / opened)
        except TclError as error:
            text = error.message
            assert "\n" not in text and len(text) < 1000, (number, text)
            names = (path.name, path.parent.name, Path(opened).name, Path(opened).stem)
            assert any(each in text for each in names), (number, text)
        except BaseException as error:
            (folder / "damaged").write_bytes(content)
            raise AssertionError(f"{name}, version {number}: {type(error).__name__}: {error}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_answered_in_one_line(name: str, tmp_path: Path) -> None:
    try_damage(name, tmp_path, EACH, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    try_damage(name, tmp_path, MANY // len(READERS) + 1, seed=1)
