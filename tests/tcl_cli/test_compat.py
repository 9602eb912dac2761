"""What earlier code left is still read, searched, resumed and finished; `tests/compat/make.sh` says how it was made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl.vectors.reader import VectorFile

STORED = Path(__file__).parents[1] / "compat"
EMBED = ("--model", "bundle", "--batch-size", "4", "--workers", "1", "--backend", "onnx", "--precision", "fp32")
SEARCHES = {
    **{f"npy-{dtype}": [f"vectors/npy/{dtype}.npy"] for dtype in ("float32", "float16", "int8", "binary")},
    **{f"parquet-{dtype}": [f"vectors/parquet/{dtype}.parquet"] for dtype in ("float32", "float16", "int8", "binary")},
    **{f"parts-{dtype}": [f"vectors/parts/{dtype}"] for dtype in ("float32", "float16", "int8", "binary", "parquet")},
    "flat": ["vectors/flat.faiss"],
    "hnsw": ["vectors/hnsw.faiss"],
    "rerank-images": ["vectors/npy/float32.npy", "--rerank", "8", "--images", "scenes"],
    "rerank-tokens": ["vectors/tokens.npy", "--rerank", "8"],
    "texts": ["vectors/texts.npy"],
    "torch": ["vectors/npy/float32.npy", "--model", "runs/tiny"],
}


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with everything that was left."""
    shutil.copytree(STORED, tmp_path / "left")
    for path in (tmp_path / "left" / "scenes").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))  # which a job knows its files by
    monkeypatch.chdir(tmp_path / "left")
    return tmp_path / "left"


def answer(name: str) -> dict[str, Any]:
    return json.loads((STORED / "answers" / f"{name}.json").read_text(encoding="utf-8"))


def close(found: Any, expected: Any) -> None:
    """Equal, but for the last digits that another processor gives a float, and for times."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"seconds"}:
            close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", SEARCHES)
def test_vectors_are_searched(name: str, left: Path, tcl: Callable[..., Any]) -> None:
    result = tcl(
        "search", "a small red circle", "--model", "bundle", "--top", "5", "--json", "--index", *SEARCHES[name]
    )
    assert result.code == 0, result.stderr
    close(json.loads(result.stdout), answer(name))


def test_groups_recall_and_check_are_the_same(left: Path, tcl: Callable[..., Any]) -> None:
    data = "scenes/captions.jsonl"
    close(json.loads(tcl("dedup", "vectors/npy/float32.npy", "--threshold", "0.999", "--json").stdout), answer("dedup"))
    recall = tcl("eval", "retrieval", "--data", data, "--model", "runs/tiny", "--json")
    close(json.loads(recall.stdout), answer("recall"))
    close(json.loads(tcl("data", "check", data, "--json").stdout), answer("check"))


@pytest.mark.parametrize(
    ("out", "source", "options"),
    [
        ("npy/float32.npy", "scenes", []),
        ("npy/int8.npy", "scenes", ["--dtype", "int8"]),
        ("parts/float16", "scenes", ["--dtype", "float16", "--shard-rows", "10"]),
        ("parquet/binary.parquet", "scenes", ["--dtype", "binary"]),
        ("texts.npy", "scenes/captions.jsonl", ["--kind", "text"]),
        ("shards.npy", "shards/*.tar", []),
        ("npy/float32.npy", "scenes", ["--model", "bundle.tar"]),
        ("torch.npy", "scenes", ["--model", "runs/tiny", "--backend", "torch", "--batch-size", "64"]),
    ],
)
def test_models_and_sources_give_the_same_vectors(
    out: str, source: str, options: list[str], left: Path, tcl: Callable[..., Any]
) -> None:
    new, old = left / "new" / Path(out).name, left / "vectors" / out
    result = tcl("embed", source, "--out", f"{new}/" if "parts" in out else str(new), *EMBED, *options)
    assert result.code == 0, result.stderr
    same_vectors(new, old)
    same_facts(new, old, set())


def test_int8_graphs_give_the_same_vectors(left: Path, tcl: Callable[..., Any]) -> None:
    assert tcl("embed", "scenes", "--out", "new.npy", *EMBED, "--precision", "int8").code == 0
    found, old = np.load("new.npy"), np.load("vectors/int8-graphs.npy")
    assert (found * old).sum(1) == pytest.approx(1, abs=0.02)  # int8 arithmetic differs between kinds of processor
    same_facts(left / "new.npy", left / "vectors" / "int8-graphs.npy", set())


@pytest.mark.parametrize(
    ("out", "options", "whole"),
    [
        ("jobs/file.npy", [], "npy/float32.npy"),
        ("jobs/parts/", ["--shard-rows", "10"], "parts/float32"),
        ("jobs/tokens.npy", ["--keep-tokens", "--dtype", "int8"], "npy/int8.npy"),
    ],
)
def test_a_killed_embedding_job_is_finished(
    out: str, options: list[str], whole: str, left: Path, tcl: Callable[..., Any]
) -> None:
    done = {path: path.read_bytes() for path in left.glob("jobs/parts/part-*") if path.is_file()}
    result = tcl("embed", "scenes", "--out", out, *EMBED, *options)
    assert result.code == 0, result.stderr
    assert "Continuing: " in result.stderr and "inputs done before" in result.stderr
    same_vectors(left / out, left / "vectors" / whole)
    same_facts(left / out, left / "vectors" / whole, {"token_shape"})
    assert not list(left.glob(f"{out}*.partial"))
    for path, content in done.items():
        assert path.read_bytes() == content
    if "tokens" in out:
        tokens = np.load(left / "vectors" / "tokens.tokens.npy")
        np.testing.assert_allclose(np.load(left / "jobs" / "tokens.tokens.npy"), tokens, atol=2e-2)


def test_a_killed_run_is_resumed(left: Path, tcl: Callable[..., Any]) -> None:
    result = tcl("pretrain", "--resume", "--out", "runs/killed")
    assert result.code == 0, result.stderr
    resumed, whole = (log(left / "runs" / name) for name in ("killed", "tiny"))
    assert resumed.keys() == whole.keys() == set(range(1, 13))
    for step, values in whole.items():
        for name in ("loss", "cma_i2t", "imc_text", "lmi_image", "itm", "mlm", "lr", "grad_norm"):
            assert resumed[step][name] == pytest.approx(values[name], rel=1e-4), (step, name)


def log(run: Path) -> dict[int, dict[str, Any]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {record["step"]: record for record in records if "loss" in record}


def same_vectors(found: Path, old: Path) -> None:
    """The same rows and ids; values equal where an integer is stored, else up to rounding."""
    one, other = VectorFile.open(found), VectorFile.open(old)
    rows = range(len(other))
    assert [one.record(row) for row in range(len(one))] == [other.record(row) for row in rows]
    np.testing.assert_allclose(one.take(rows), other.take(rows), atol=2e-3 if "16" in str(old) else 1e-5)


def same_facts(found: Path, old: Path, left_out: set[str]) -> None:
    def read(path: Path) -> dict[str, Any]:
        meta = path / "meta.json" if path.is_dir() else path.with_suffix(".meta.json")
        facts = json.loads(meta.read_text(encoding="utf-8"))
        but = left_out | {"root", "inputs_stamp"}  # path and times of the sources
        return {key: value for key, value in facts.items() if key not in but}

    close(read(found), read(old))
