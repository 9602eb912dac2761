"""Bundles appear whole, describe themselves, and notice damage."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export.bundle import build_bundle
from tcl.encoders.bundle import Bundle, read_bundle, read_graphs
from tcl.encoders.onnx import OnnxEncoder
from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError
from tcl.models.tcl import TCL

GRAPHS = ["image_encoder", "text_encoder", "image_tokens", "image_key_values", "matcher"]


def test_manifest(bundle: Bundle) -> None:
    manifest = json.loads((bundle.folder / "bundle.json").read_text())
    assert manifest["model_hash"] == bundle.model_hash
    assert manifest["precisions"] == ["fp32"] and manifest["task"] is None
    assert manifest["verified"] is True and manifest["verification"]["moved"] == []
    assert list(manifest["graphs"]) == GRAPHS
    others = {"tokenizer.json", "preprocess.json", "README.md"}
    assert set(manifest["files"]) == {f"{name}.onnx" for name in GRAPHS} | others
    text = manifest["graphs"]["text_encoder"]
    assert text["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["batch", "sequence"]}
    assert text["precisions"] == {"fp32": {"file": "text_encoder.onnx", "verified": True}}
    assert manifest["preprocessing"]["image_size"] == [32, 32]
    assert {"torch", "onnx", "onnxruntime", "tcl"} == set(manifest["tools"])
    assert str(bundle.folder.parent) not in json.dumps(manifest)


def test_the_same_model_gives_the_same_bundle(tiny_model: TCL, bundle: Bundle, tmp_path: Path) -> None:
    build_bundle(tiny_model, tmp_path / "again")
    for path in bundle.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_without_the_graphs_of_re_ranking(tiny_model: TCL, tmp_path: Path) -> None:
    made = build_bundle(tiny_model, tmp_path / "small", ["bf16", "fp16"], matcher=False)
    assert list(made.graphs) == GRAPHS[:2] and made.precisions == ("fp16", "bf16") and made.verified
    assert {path.name for path in made.folder.glob("*.onnx")} == {
        f"{name}.{precision}.onnx" for name in GRAPHS[:2] for precision in ("fp16", "bf16")
    }
    with pytest.raises(UsageError, match="has no image_tokens graph"):
        OnnxEncoder(made.folder).encode_image_tokens(np.zeros((1, 3, 32, 32), np.uint8))


def test_read_again(bundle: Bundle) -> None:
    again = read_bundle(bundle.folder)
    assert (again.model_hash, again.embed_dim, again.verified) == (bundle.model_hash, 16, True)
    assert again.precisions == ("fp32",) and list(again.graphs) == GRAPHS
    assert again.graph_file("matcher", "fp32") == bundle.folder / "matcher.onnx"
    with pytest.raises(UsageError, match="no fp16 graphs, only fp32"):
        again.graph_file("matcher", "fp16")


def test_a_bundle_of_the_first_format_is_read(copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    old = {name: {"file": f"{name}.onnx"} for name in GRAPHS[:2]}
    manifest |= {"format_version": 1, "graphs": old, "created": "2026-01-01T00:00:00+00:00"}
    (copied / "bundle.json").write_text(json.dumps(manifest))
    encoder = OnnxEncoder(copied)
    assert encoder.precision == "fp32" and list(encoder.bundle.graphs) == GRAPHS[:2]
    assert encoder.encode_image(np.zeros((2, 3, 32, 32), np.uint8)).shape == (2, 16)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr("export.bundle.find_spec", lambda name: None if name == package else name)
    with pytest.raises(MissingExtraError, match=f"{package}, which is not installed") as caught:
        build_bundle(tiny_model, tmp_path / "bundle")
    assert caught.value.hint == "pip install '.[onnx]'" and list(tmp_path.iterdir()) == []


def test_existing_target(tiny_model: TCL, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        build_bundle(tiny_model, tmp_path)


@pytest.mark.parametrize("target", ["file/bundle", "/proc/bundle"])
def test_target_that_cannot_be_written(tiny_model: TCL, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        build_bundle(tiny_model, tmp_path / target)


@pytest.mark.parametrize("written", [0, 2])
def test_nothing_is_left_of_an_interrupted_export(
    tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    def interrupt(step: str) -> None:
        seen.append(step)
        if len(seen) > written:
            raise KeyboardInterrupt

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        build_bundle(tiny_model, tmp_path / "bundle", progress=interrupt)
    assert list(tmp_path.iterdir()) == [] and len(seen) == written + 1


def test_a_full_disk(tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = onnx.save

    def full(model: onnx.ModelProto, path: Path, **settings: object) -> None:
        if path.name == "text_encoder.onnx":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(model, path, **settings)

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(TclError, match="not enough disk space") as caught:
        build_bundle(tiny_model, tmp_path / "bundle")
    assert caught.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_two_exports_at_once_to_one_name(tiny_model: TCL, tmp_path: Path) -> None:
    with (tmp_path / ".bundle.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as an export in another process
        with pytest.raises(UsageError, match="another process is writing it"):
            build_bundle(tiny_model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    build_bundle(tiny_model, tmp_path / "bundle", matcher=False, check=False)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_name_that_appears_meanwhile_is_kept(tiny_model: TCL, tmp_path: Path) -> None:
    """Another process wrote it while this one exported, after the first look."""

    def appear(step: str) -> None:
        if step.startswith("verifying"):
            (tmp_path / "bundle").mkdir(exist_ok=True)
            (tmp_path / "bundle" / "theirs").touch()

    with pytest.raises(UsageError, match="cannot be written"):
        build_bundle(tiny_model, tmp_path / "bundle", matcher=False, progress=appear)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["theirs"]


def test_missing_and_changed_files_are_named(copied: Path) -> None:
    for name in ("tokenizer.json", "preprocess.json"):
        before = (copied / name).read_bytes()
        (copied / name).write_bytes(before + b" ")
        with pytest.raises(CheckpointError, match=f"{name}: is not the file that was exported"):
            read_bundle(copied)
        (copied / name).write_bytes(before)
    (copied / "matcher.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"matcher\.onnx: is missing"):
        read_bundle(copied)


def test_a_graph_edited_by_hand_is_refused(copied: Path) -> None:
    path = copied / "image_encoder.onnx"
    model = onnx.load(path)
    model.graph.doc_string = "edited"
    onnx.save(model, path)
    encoder = OnnxEncoder(copied)
    encoder.encode_text(*encoder.processor.texts(["a dog"]))  # its graph is as it was
    with pytest.raises(CheckpointError, match=r"image_encoder\.onnx: is not the file that was exported"):
        encoder.encode_image(np.zeros((1, 3, 32, 32), np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format_version": 2}',
        '{"format_version": 99}',
        '{"format_version": 2, "graphs": {"image_encoder": {"precisions": {"fp32": {"file": "x.onnx"}}}}, '
        '"model_hash": "", "embed_dim": 1, "precisions": [], "verified": true, "files": {}}',
        '{"format_version": 2, "graphs": {}, "model_hash": "", "embed_dim": 1, "precisions": [], "verified": true, '
        '"files": {"../x": ""}}',
    ],
)
def test_damaged_manifest(copied: Path, content: str) -> None:
    (copied / "bundle.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"bundle\.json"):
        read_bundle(copied)


@pytest.mark.parametrize("inputs", [None, [], {"input_ids": 7}, {"input_ids": {"dtype": "int64"}}])
def test_damaged_descriptions_of_graphs(copied: Path, inputs: object) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    manifest["graphs"]["text_encoder"]["inputs"] = inputs
    (copied / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"bundle\.json: cannot be read: "):
        read_graphs(copied)


def test_the_lines_in_the_readme_run_without_this_package(copied: Path) -> None:
    text = (copied / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 10
    Image.new("RGB", (50, 40), (200, 30, 30)).save(copied / "photo.jpg")
    guard = "import sys\nfor name in ('torch', 'tcl', 'export', 'onnx'): sys.modules[name] = None\n"
    command = [sys.executable, "-I", "-c", guard + code]
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    encoder = OnnxEncoder(copied)
    texts = encoder.encode_text(*encoder.processor.texts(["a small red circle"]))
    expected = encoder.encode_image(encoder.processor.images([copied / "photo.jpg"])) @ texts.T
    assert float(done.stdout.strip("[] \n")) == pytest.approx(expected.item(), abs=1e-3)
