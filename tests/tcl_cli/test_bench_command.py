"""`tcl bench`: a table, JSON, a picture, what is kept; and every wrong way to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tcl_cli.bench import _sides
from tests.tcl_cli.conftest import Result

Tcl = Callable[..., Result]
QUICK = ("--seconds", "0.01", "--batch-sizes", "1,2")


@pytest.fixture
def exported(workplace: Path, tcl: Tcl) -> Path:
    """The workplace with a bundle, and without the run that it was made of."""
    assert tcl("export", "--no-matcher", "--precision", "fp32,int8").code == 0
    (workplace / "runs").rename(workplace / "elsewhere")
    return workplace


def test_the_table_and_the_way_from_file_to_file(exported: Path, tcl: Tcl) -> None:
    (exported / "images" / "broken.png").write_bytes(b"no image")
    done = tcl("bench", "--model", "exports/tiny", "--images", "images", "--all", "--plot", "b.png", *QUICK)
    assert done.code == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header[:3] == ["images/s", "1 at once", "2 at once"] and header[-1] == "verified"
    assert [row[0] for row in rows] == [
        "onnx-cpu fp32",
        "onnx-cpu int8",
        "sentences/s",
        "onnx-cpu fp32",
        "onnx-cpu int8",
    ]
    assert all(row[-1] == "yes" and "±" in row[1] for row in (*rows[:2], *rows[3:]))
    assert done.stderr.count("from file to file: ") == 2 and "the bottleneck is " in done.stderr
    assert "Cosines are to onnx-cpu fp32" in done.stderr
    with Image.open("b.png") as picture:
        assert picture.width > 1000
    kept = Path(done.stderr.splitlines()[-1].removeprefix("Kept in "))
    record = json.loads(kept.read_text())
    whole = record["results"][0]["end_to_end"]
    assert (whole["images"], whole["failed"]) == (3, 1) and whole["bottleneck"] in whole["rates"]


def test_json(exported: Path, tcl: Tcl) -> None:
    done = tcl("bench", "--model", "exports/tiny", "--json", "--seconds", "0.01", "--batch-sizes", "2")
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout)
    assert [(each["backend"], each["precision"]) for each in record["results"]] == [("onnx", "fp32"), ("onnx", "int8")]


def test_a_run_and_its_bundle_find_each_other(exported: Path) -> None:
    model, bundle = _sides(None, None)
    assert model is None and bundle is not None and bundle.folder == Path("exports/tiny")
    (exported / "elsewhere").rename(exported / "runs")
    for name in (None, "runs/tiny", "exports/tiny"):
        model, bundle = _sides(name, None)
        assert model is not None and bundle is not None
        assert (model.location, bundle.folder) == ("runs/tiny/model", Path("exports/tiny"))


def test_bad_input(exported: Path, tcl: Tcl) -> None:
    for arguments, code, message in [
        (["--batch-sizes", "1,x"], 2, "not a list of batch sizes"),
        (["--batch-sizes", "0"], 2, "not a list of batch sizes"),
        (["--batch-sizes", "99999999"], 2, "not a list of batch sizes"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--all"], 2, "--all measures how files are read"),
        (["--images", "nowhere"], 2, "nowhere"),
        (["--plot", "b.jpg"], 2, "the picture is a PNG"),
        (["--model", "nothing"], 2, "nothing: no such model"),
        (["--model", "exports/tiny", "--bundle", "exports/tiny"], 2, "is a bundle already"),
        (["--model", "elsewhere/tiny", "--bundle", "elsewhere/tiny"], 2, "no exported bundle"),
        (["--model", "exports/tiny", "--compile-all"], 2, "No such option"),
    ]:
        done = tcl("bench", *arguments)
        assert (done.code, done.stdout) == (code, "") and message in done.stderr, (arguments, done.stderr)
    (exported / "exports" / "tiny" / "image_encoder.onnx").write_bytes(b"edited")
    done = tcl("bench", "--model", "exports/tiny", *QUICK)
    assert done.code == 1 and "image_encoder.onnx: is not the file that was exported" in done.stderr
