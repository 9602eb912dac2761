"""Options of `tcl embed`: what is said, what is refused, and where vectors go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from tests.tcl_cli.conftest import Result

Tcl = Callable[..., Result]


def test_profile(workplace: Path, tcl: Tcl) -> None:
    result = tcl("embed", "images", "--out", "v.npy", "--profile", "--workers", "2")
    lines = [line.split() for line in result.stderr.splitlines()]
    table = lines[[line[:1] for line in lines].index(["stage"]) :]
    assert [" ".join(line).split()[0] for line in table] == ["stage", "read", "encode", "write"]
    assert sum("bottleneck" in line for line in table) == 1 and result.stdout == "v.npy\n"
    result = tcl("embed", "images", "--out", "w.npy", "--profile", "--workers", "2", "--json")
    stages = json.loads(result.stdout)["profile"]
    assert [stage["stage"] for stage in stages] == ["read + decode", "encode", "write"]
    assert stages[0]["threads"] == 2 and all(stage["rate"] > 0 for stage in stages)


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_the_recall_that_is_lost_is_printed(workplace: Path, tcl: Tcl, dtype: str) -> None:
    result = tcl("embed", "scenes:val:30", "--out", "v.npy", "--dtype", dtype)
    assert "recall@10 of these vectors against float32: " in result.stderr and " % lost" in result.stderr
    assert "recall" not in tcl("embed", "images", "--out", "w.npy").stderr


def test_a_folder_of_parts(workplace: Path, tcl: Tcl) -> None:
    result = tcl("embed", "images", "--out", "parts/", "--shard-rows", "2", "--format", "parquet", "--json")
    assert result.code == 0 and json.loads(result.stdout)["count"] == 3
    assert [parquet.read_table(path).num_rows for path in sorted(Path("parts").glob("part-*.parquet"))] == [2, 1]
    result = tcl("embed", "images", "--out", "parts/", "--shard-rows", "2", "--format", "parquet", "--resume")
    assert result.code == 0 and "parts is complete" in result.stderr and result.stdout == "parts\n"
    assert tcl("embed", "images", "--out", "parts/").code == 2


def test_resume_starts_continues_and_ends(workplace: Path, tcl: Tcl) -> None:
    arguments = ("embed", "images", "--out", "v.npy", "--resume")
    assert tcl(*arguments).code == 0
    before = {path.name: path.read_bytes() for path in workplace.glob("v.*")}
    result = tcl(*arguments)
    assert result.code == 0 and "v.npy is complete" in result.stderr and result.stdout == "v.npy\n"
    (workplace / "images" / "1.png").unlink()
    result = tcl(*arguments)
    assert result.code == 2 and "v.npy: exists, with other inputs (3 then, 2 now)" in result.stderr
    assert {path.name: path.read_bytes() for path in workplace.glob("v.*")} == before


def test_tokens_are_kept(workplace: Path, tcl: Tcl) -> None:
    assert tcl("embed", "images", "--out", "v.npy", "--keep-tokens").code == 0
    tokens = np.load("v.tokens.npy")
    assert tokens.shape == (3, 17, 32) and tokens.dtype == np.float16 and np.isfinite(tokens).all()
    Path("t.txt").write_text("a red circle\n")
    result = tcl("embed", "t.txt", "--out", "t.npy", "--keep-tokens")
    assert result.code == 2 and "these are texts" in result.stderr


@pytest.mark.slow
def test_two_processes_of_a_real_model(workplace: Path, tcl: Tcl) -> None:
    assert tcl("embed", "images", "--out", "v.npy", "--batch-size", "1").code == 0
    result = tcl("embed", "images", "--out", "w.npy", "--batch-size", "1", "--devices", "cpu,cpu")
    assert result.code == 0, result.stderr
    assert Path("v.npy").read_bytes() == Path("w.npy").read_bytes()
    assert Path("v.meta.json").read_bytes() == Path("w.meta.json").read_bytes()


def test_columns_by_name(workplace: Path, tcl: Tcl) -> None:
    Path("table.csv").write_text("key,photo,words\na,images/1.png,a red circle\nb,images/2.png,a dog\n")
    assert tcl("embed", "table.csv", "--out", "v.npy", "--image-column", "photo", "--id-column", "key").code == 0
    ids = [json.loads(line) for line in Path("v.ids.jsonl").read_text().splitlines()]
    assert [row["id"] for row in ids] == ["a", "b"]
    assert tcl("embed", "table.csv", "--kind", "text", "--text-column", "words", "--out", "t.npy").code == 0
    assert np.load("t.npy").shape == (2, 16)


def test_a_list_with_missing_files(workplace: Path, tcl: Tcl) -> None:
    Path("list.lst").write_text("images/1.png\nimages/nowhere.png\nimages/2.png\n")
    result = tcl("embed", "list.lst", "--out", "v.npy")
    assert result.code == 0 and "1 input could not be read; see v.errors.jsonl" in result.stderr
    error = json.loads(Path("v.errors.jsonl").read_text())
    assert error["id"] == "images/nowhere.png" and error["reason"] == "no such file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "v.npy", "--restart", "--resume"], "--restart begins anew, --resume goes on"),
        (["--out", "v.npy", "--shard-rows", "5"], "--shard-rows is for a folder of parts"),
        (["--out", "v.npy", "--format", "npy"], "--format is for a folder of parts"),
        (["--out", "v.npy", "--engine", "ray"], "--engine ray is for a folder of parts"),
        (["--out", "v.npy", "--devices", "cpu", "--device", "cpu"], "say the same"),
        (["--out", "v.npy", "--devices", "tpu"], "'tpu' is no device"),
        (["--out", "v.npy", "--dtype", "int4"], "Invalid value for '--dtype'"),
        (["--out", "images/"], "images: holds 1.png"),
        (["--out", "locked/v.npy"], "locked/v.npy: cannot be written"),
    ],
)
def test_bad_options(workplace: Path, tcl: Tcl, arguments: list[str], message: str) -> None:
    (workplace / "locked").write_text("a file where a folder should be")
    result = tcl("embed", "images", *arguments)
    assert result.code == 2 and message in result.stderr and result.stdout == "" and "Traceback" not in result.stderr
    assert not list(workplace.glob("v.*"))


def test_ray_that_is_not_installed(workplace: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.embedding.ray.find_spec", lambda name: None)
    result = tcl("embed", "images", "--out", "parts/", "--engine", "ray")
    assert result.code == 2 and "this needs ray" in result.stderr and "[ray]" in result.stderr
