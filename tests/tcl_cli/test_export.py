"""`tcl export`: names its bundles, says what it verified, exits 3 when a figure is off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.verify import Check
from tcl_cli.main import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """No graphs are written, and verification finds what is in the list."""
    checks = [Check("image_encoder", "values", True, "fine", 3, 1e-7, 1.0)]
    monkeypatch.setattr("export.onnx.export_onnx", lambda model, folder: None)
    monkeypatch.setattr("export.bundle.verify", lambda *_: checks)
    return checks


def test_the_whole_command(workplace: Path, capsys: Capture) -> None:
    assert run(["export", "--onnx", "--verify-images", "images", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["out"], result["verified"]) == ("exports/tiny", True)
    images = next(check for check in result["checks"] if check["subject"] == "values")
    assert images["cases"] == 6 and images["max_abs_diff"] <= 1e-5
    assert run(["embed", "images", "--out", "v.npy", "--backend", "onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "onnx-cpu"
    assert run(["search", "a dog", "--index", "v.npy", "--model", "exports/tiny", "--rerank", "2"]) == 2
    assert "fusion encoder, which a bundle does not hold" in capsys.readouterr().err
    assert run(["export", "--model", "exports/tiny", "--out", "again"]) == 2


def test_names(workplace: Path, quick: list[Check], capsys: Capture) -> None:
    for name in ("tiny", "tiny-2", "tiny-3"):
        assert run(["export"]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"exports/{name}\n"
        assert "ok     image_encoder  values  fine" in captured.err
    assert run(["export", "--out", "exports/tiny"]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_failed_verification(workplace: Path, quick: list[Check], capsys: Capture) -> None:
    quick.append(Check("text_encoder", "values", False, "max |difference| 1e-02", 3, 1e-2, 0.9))
    assert run(["export"]) == 3
    captured = capsys.readouterr()
    assert "Error: exports/tiny: text_encoder values: max |difference| 1e-02" in captured.err
    assert "FAILED text_encoder" in captured.err
    assert json.loads(Path("exports/tiny/bundle.json").read_text())["verified"] is False


def test_no_verify_is_marked_and_said_again_at_use(workplace: Path, quick: list[Check], capsys: Capture) -> None:
    assert run(["export", "--no-verify"]) == 0
    assert "marked unverified" in capsys.readouterr().err
    assert json.loads(Path("exports/tiny/bundle.json").read_text())["verification"] is None
    run(["embed", "images", "--out", "v.npy", "--model", "exports/tiny"])
    assert "Warning: exports/tiny is marked unverified" in capsys.readouterr().err


def test_bad_input(workplace: Path, quick: list[Check], capsys: Capture) -> None:
    Path("file").touch()
    for arguments, message in [
        (["--out", "images"], "images: exists"),
        (["--out", "file/bundle"], "cannot be written"),
        (["--model", "nothing"], "nothing: no such model"),
        (["--no-verify", "--verify-images", "images"], "exclude each other"),
        (["--verify-images", "nowhere"], "nowhere: no such file or folder"),
    ]:
        assert run(["export", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err
    assert not Path("exports").exists()
    shutil.rmtree("runs")
    assert run(["export"]) == 2
    assert "no model" in capsys.readouterr().err
