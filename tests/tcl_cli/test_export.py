"""`tcl export`: names its bundles, says what it verified, exits 3 when a figure is off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tcl.models.tcl import TCL
from tests.tcl_cli.conftest import Result
from tests.tcl_cli.fine_tuned import save_fine_tuned

Tcl = Callable[..., Result]


def test_the_whole_command(workplace: Path, tcl: Tcl) -> None:
    Path("texts.txt").write_text("a red circle\na blue square\n...\n")
    real = ("--calibrate", "images", "--calibrate-texts", "texts.txt")
    done = tcl("export", "--onnx", "--precision", "int8, fp32,fp16", "--int8", "dynamic", *real, "--pack", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["out"], result["packed"], result["verified"]) == ("exports/tiny", "exports/tiny.tar", True)
    assert result["precisions"] == ["fp32", "fp16", "int8"]
    assert result["graphs"] == ["image_encoder", "text_encoder", "image_tokens", "image_key_values", "matcher"]
    values = [check for check in result["checks"] if check["graph"] == "text_encoder" and check["subject"] == "values"]
    assert [check["cases"] for check in values] == [152] * 3  # two of the texts have words
    assert values[0]["max_abs_diff"] <= 1e-5 and values[2]["min_cosine"] >= 0.99
    for model in ("exports/tiny", "exports/tiny.tar"):
        done = tcl("embed", "images", "--out", f"{model[-4:]}.npy", "--model", model, "--json")
        assert done.code == 0 and json.loads(done.stdout)["backend"] == "onnx-cpu"
    assert tcl("export", "--model", "exports/tiny", "--out", "again").code == 2


def test_static_int8(workplace: Path, tcl: Tcl) -> None:
    done = tcl("export", "--precision", "int8", "--calibrate", "images", "--no-matcher", "--bound", "int8=0.9")
    assert done.code == 0, done.stderr
    manifest = json.loads(Path("exports/tiny/bundle.json").read_text())
    ways = {name: graph["precisions"]["int8"]["quantisation"] for name, graph in manifest["graphs"].items()}
    assert ways == {"image_encoder": "static", "text_encoder": "dynamic"}
    assert manifest["verification"]["moved"] == ["int8"]


def test_names_and_the_table(workplace: Path, tcl: Tcl) -> None:
    for name in ("tiny", "tiny-2", "tiny-3"):
        done = tcl("export", "--no-matcher", "--precision", "fp32,bf16")
        assert (done.code, done.stdout) == (0, f"exports/{name}\n")
    rows = [line.split() for line in done.stderr.splitlines() if line.startswith("  ok ")]
    assert [row[:4] for row in rows] == [
        ["ok", graph, precision, f"{graph.partition('_')[0]}_embeds"]
        for graph in ("image_encoder", "text_encoder")
        for precision in ("fp32", "bf16")
    ]
    assert all(row[-2:] == (["difference", "1e-05"] if row[2] == "fp32" else ["cosine", "0.998"]) for row in rows)
    assert "exists" in tcl("export", "--out", "exports/tiny").stderr


def test_a_failed_verification(workplace: Path, tcl: Tcl) -> None:
    done = tcl("export", "--no-matcher", "--precision", "fp32,fp16", "--bound", "fp16=1")
    assert done.code == 3
    assert "Error: exports/tiny: image_encoder fp16 values: image_embeds: smallest cosine 0.9999" in done.stderr
    assert done.stderr.count("  FAILED  ") == 2 and done.stderr.count("  ok      ") == 2
    manifest = json.loads(Path("exports/tiny/bundle.json").read_text())
    assert manifest["verified"] is False
    assert {name: entry["verified"] for name, entry in manifest["graphs"]["text_encoder"]["precisions"].items()} == {
        "fp32": True,
        "fp16": False,
    }
    command = ["embed", "images", "--model", "exports/tiny", "--out"]
    assert "Warning" not in tcl(*command, "v.npy").stderr, "fp32 is as good as before"
    refused = tcl(*command, "w.npy", "--precision", "fp16")
    assert refused.code == 2 and not list(Path().glob("w.*"))
    assert "Error: exports/tiny: failed its verification in fp16" in refused.stderr
    done = tcl(*command, "w.npy", "--precision", "fp16", "--allow-unverified")
    assert done.code == 0 and "Warning: exports/tiny is marked unverified" in done.stderr


def test_no_verify_is_marked_and_said_again_at_use(workplace: Path, tcl: Tcl) -> None:
    assert "marked unverified" in tcl("export", "--no-verify", "--no-matcher").stderr
    assert json.loads(Path("exports/tiny/bundle.json").read_text())["verification"] is None
    done = tcl("embed", "images", "--out", "v.npy", "--model", "exports/tiny")
    assert "Warning: exports/tiny is marked unverified" in done.stderr


def test_a_fine_tuned_model_has_a_graph_for_its_task(workplace: Path, tiny_model: TCL, tcl: Tcl) -> None:
    folder = save_fine_tuned(tiny_model, "entailment", ["no", "yes"], "fine")
    done = tcl("export", "--model", folder, "--no-matcher", "--json")
    assert json.loads(done.stdout)["graphs"] == ["image_encoder", "text_encoder", "entailment"]
    manifest = json.loads(Path("exports/fine/bundle.json").read_text())
    assert manifest["task"] == {"name": "entailment", "labels": ["no", "yes"]}
    assert manifest["graphs"]["entailment"]["outputs"] == {"logits": {"dtype": "float32", "shape": ["batch", 2]}}


def test_real_inputs_that_are_none(workplace: Path, tcl: Tcl) -> None:
    Path("bad").mkdir()
    Path("bad/a.png").write_bytes(b"x")
    Path("dots.txt").write_text("...\n")
    for arguments, message in [
        (["--calibrate", "bad"], "--calibrate bad: none of the first 32 images can be read"),
        (["--calibrate-texts", "dots.txt"], "--calibrate-texts dots.txt: none of the first 32 texts has words"),
    ]:
        done = tcl("export", *arguments)
        assert (done.code, done.stdout) == (1, "") and message in done.stderr
    assert not Path("exports").exists()


def test_a_model_repository_beside(workplace: Path, tcl: Tcl) -> None:
    done = tcl("export", "--no-matcher", "--no-verify", "--precision", "fp16,fp32", "--triton", "models")
    assert (done.code, done.stdout) == (0, "exports/tiny\n") and "models: a model repository" in done.stderr
    assert sorted(path.name for path in Path("models").iterdir()) == ["image_encoder", "text_encoder"]
    assert Path("models/text_encoder/1/model.onnx").samefile("exports/tiny/text_encoder.onnx")
    for option in (["--onnx"], ["--triton", "other"]):
        done = tcl("export", "--trt", "--model", "exports/tiny", *option)
        assert done.code == 2 and f"{option[0]} has no effect" in done.stderr


def test_bad_input(workplace: Path, tcl: Tcl) -> None:
    Path("file").touch()
    Path("taken.tar").touch()
    for arguments, message in [
        (["--out", "images"], "images: exists"),
        (["--out", "taken", "--pack"], "taken.tar: exists"),
        (["--out", "file/bundle"], "cannot be written"),
        (["--model", "nothing"], "nothing: no such model"),
        (["--no-verify", "--bound", "fp32=1"], "exclude each other"),
        (["--bound", "fp64=1"], "--bound fp64=1: no such bound"),
        (["--precision", "fp32,fp64"], "no such precision: 'fp64'"),
        (["--precision", ","], "no precision was given"),
        (["--precision", "int8", "--int8", "static"], "finds the ranges on real inputs"),
        (["--int8", "static", "--calibrate", "images"], "--int8 static without int8 graphs"),
        (["--int8", "dynamic"], "--int8 dynamic without int8 graphs"),
        (["--triton", "images"], "images: exists"),
        (["--triton", "new", "--out", "new"], "--out and --triton are both new"),
        (["--triton", "models", "--precision", "bf16"], "ONNX Runtime does not run bf16"),
        (["--calibrate", "nowhere"], "--calibrate nowhere: no such file or folder"),
        (["--calibrate-texts", "images"], "--calibrate-texts images: holds images, not texts"),
    ]:
        done = tcl("export", *arguments)
        assert (done.code, done.stdout) == (2, "") and message in done.stderr, arguments
        assert "--kind" not in done.stderr  # an option of another command
    assert not Path("exports").exists()
    shutil.rmtree("runs")
    done = tcl("export")
    assert done.code == 2 and "no model" in done.stderr
