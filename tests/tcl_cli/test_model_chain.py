"""The hash of a model runs from its folder to bundle, graphs, vectors, tokens and index; two models never mix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export.bundle import build_bundle
from tcl import TCL
from tests.conftest import make_tiny_model
from tests.tcl_cli.conftest import Result

Tcl = Callable[..., Result]
QUERY = "a small red circle"


@pytest.fixture
def two_models(workplace: Path, tiny_model: TCL) -> tuple[TCL, TCL]:
    """`runs/tiny` and `exports/tiny` of one model, `runs/other` and `exports/other` of another one of its shape."""
    other = make_tiny_model(seed=7)
    other.save_pretrained(workplace / "runs" / "other" / "model")
    for name, model in (("tiny", tiny_model), ("other", other)):
        build_bundle(model, workplace / "exports" / name, check=False)
    return tiny_model, other


def _hash(path: str) -> str:
    return str(json.loads(Path(path).read_text())["model_hash"])


def test_one_hash_from_the_model_to_the_index(two_models: tuple[TCL, TCL], tcl: Tcl) -> None:
    pytest.importorskip("faiss")
    own, other = two_models
    assert own.model_hash != other.model_hash
    for name, model in (("tiny", own), ("other", other)):
        bundle = f"exports/{name}"
        made = tcl("embed", "images", "--out", f"{name}.npy", "--model", bundle, "--keep-tokens")
        assert made.code == 0 and model.model_hash[:12] in made.stderr
        assert tcl("index", f"{name}.npy").code == 0
        graphs = [onnx.load(path) for path in sorted(Path(bundle).glob("*.onnx"))]
        named = {entry.value for graph in graphs for entry in graph.metadata_props if entry.key == "tcl.model_hash"}
        files = (f"runs/{name}/model/config.json", f"{bundle}/bundle.json", f"{name}.meta.json")
        assert {*map(_hash, files), *named} == {model.model_hash} and len(graphs) == 5

    shutil.move("images", "gone")  # re-ranking has the tokens
    for model in ("runs/tiny", "exports/tiny"):
        for arguments in ([], ["--rerank", "2"]):
            for index in ("tiny.npy", "tiny.faiss"):
                done = tcl("search", QUERY, "--index", index, "--model", model, *arguments)
                assert done.code == 0, (model, index, done.stderr)
    for model in ("runs/other", "exports/other"):
        for arguments in ([], ["--rerank", "2"]):
            for index in ("tiny.npy", "tiny.faiss"):
                done = tcl("search", QUERY, "--index", index, "--model", model, *arguments)
                assert (done.code, done.stdout) == (2, ""), (model, index)
                assert "vectors of another model" in done.stderr and own.model_hash[:12] in done.stderr


def test_what_is_left_of_one_model_is_not_continued_with_another(two_models: tuple[TCL, TCL], tcl: Tcl) -> None:
    assert tcl("embed", "images", "--out", "v.npy", "--model", "exports/tiny").code == 0
    before = Path("v.npy").read_bytes()
    for options in ([], ["--resume"]):
        done = tcl("embed", "images", "--out", "v.npy", "--model", "exports/other", *options)
        assert done.code == 2 and Path("v.npy").read_bytes() == before, done.stderr


def test_bench_does_not_compare_two_models(two_models: tuple[TCL, TCL], tcl: Tcl) -> None:
    arguments = ("--seconds", "0.01", "--batch-sizes", "1")
    done = tcl("bench", "--model", "runs/tiny", "--bundle", "exports/other", *arguments)
    assert (done.code, done.stdout) == (2, "") and "is of model" in done.stderr


def test_graphs_of_another_model_are_noticed(two_models: tuple[TCL, TCL], tcl: Tcl) -> None:
    for name in ("image_encoder.onnx", "tokenizer.json", "preprocess.json"):
        before = Path("exports/tiny", name).read_bytes()
        replacement = Path("exports/other", name).read_bytes()
        Path("exports/tiny", name).write_bytes(replacement if replacement != before else replacement + b" ")
        done = tcl("embed", "images", "--out", "x.npy", "--model", "exports/tiny")
        assert done.code == 1 and f"{name}: is not the file that was exported" in done.stderr
        Path("exports/tiny", name).write_bytes(before)
    assert not Path("x.npy").exists()
