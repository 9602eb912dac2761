"""Images whose names hold line breaks and escapes: one id each, in every file and every command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tcl_cli.conftest import Result

Tcl = Callable[..., Result]
NAMES = [
    rb"caf\udce9.png",  # what a name that is no Unicode would be spelt like
    b"two\nlines.png",
    b"tab\tbed.png",
    b"\x1b[31mred.png",
    rb"back\slash.png",
    b"[bold]'\".png",
    "日本\u3000語.png".encode(),
]


@pytest.fixture
def odd(workplace: Path, tcl: Tcl) -> set[str]:
    """The images' names; `v.npy` and `w.parquet` of them."""
    folder = workplace / "fo\ntos"
    folder.mkdir()
    for name in NAMES:
        shutil.copy("images/1.png", folder / os.fsdecode(name))
    shutil.copy("images/2.png", folder / "other.png")
    for out in ("v.npy", "w.parquet"):
        done = tcl("embed", str(folder), "--out", out)
        assert done.code == 0, done.stderr
    shutil.rmtree("images")
    return {os.fsdecode(name) for name in (*NAMES, b"other.png")}


def ids(result: Result) -> set[str]:
    assert result.code == 0, result.stderr
    return {hit["id"] for hit in json.loads(result.stdout)["hits"]}


def grouped(lines: str) -> set[str]:
    found: list[dict[str, Any]] = []
    for line in lines.splitlines():
        group = json.loads(line)
        found += [group["kept"], *group["duplicates"]]
    return {hit["id"] for hit in found}


@pytest.mark.parametrize("index", ["v.npy", "w.parquet"])
def test_search_and_dedup_name_the_files(odd: set[str], tcl: Tcl, index: str) -> None:
    assert ids(tcl("search", "a red circle", "--index", index, "--rerank", "9", "--json")) == odd
    assert grouped(tcl("dedup", index, "-t", "0.9999").stdout) == odd - {"other.png"}
    assert tcl("dedup", index, "-t", "0.9999", "--out", "groups.jsonl", "--html", "groups.html").code == 0
    assert grouped(Path("groups.jsonl").read_text(encoding="utf-8")) == odd - {"other.png"}
    assert Path("groups.html").read_text(encoding="utf-8").count("<img") == len(NAMES)


def test_ids_in_the_files(odd: set[str]) -> None:
    from pyarrow import parquet

    lines = Path("v.ids.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert {json.loads(line)["id"] for line in lines} == odd
    assert rb'"caf\\udce9.png"' in Path("v.ids.jsonl").read_bytes()
    spelt = parquet.read_table("w.parquet")["id"].to_pylist()
    assert len(set(spelt)) == 8 and {r"caf\u005cudce9.png", "two\nlines.png"} < set(spelt)


def test_a_table_of_hits_has_a_line_for_each(odd: set[str], tcl: Tcl) -> None:
    lines = tcl("search", "a red circle", "--index", "v.npy").stdout.splitlines()
    shown = {line.split("\t")[2] for line in lines[1:]}
    assert len(lines) == 9 and {r"two\nlines.png", r"tab\tbed.png", r"\x1b[31mred.png", r"caf\udce9.png"} < shown


def test_a_database_takes_them_all(odd: set[str], tcl: Tcl) -> None:
    pytest.importorskip("lancedb")
    for index in ("v.npy", "w.parquet"):  # the second replaces every row of the first
        done = tcl("index", index, "--to", "lancedb:db/photos")
        assert done.code == 0 and "8 rows written, 8 in the table" in done.stderr, done.stderr
    assert ids(tcl("search", "a red circle", "--index", "lancedb:db/photos", "--rerank", "9", "--json")) == odd
