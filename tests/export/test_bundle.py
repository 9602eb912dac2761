"""Bundles appear whole, describe themselves, and notice damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.bundle import Bundle, build_bundle, read_bundle
from tcl.errors import CheckpointError, UsageError
from tcl.models.tcl import TCL


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def test_manifest(bundle: Bundle) -> None:
    manifest = json.loads((bundle.folder / "bundle.json").read_text())
    assert manifest["model_hash"] == bundle.model_hash
    assert manifest["precisions"] == ["fp32"]
    assert manifest["verified"] is True
    assert set(manifest["files"]) == {"image_encoder.onnx", "text_encoder.onnx", "tokenizer.json", "preprocess.json"}
    assert manifest["graphs"]["text_encoder"]["inputs"]["input_ids"] == {
        "dtype": "int64",
        "shape": ["batch", "sequence"],
    }
    assert manifest["preprocessing"]["image_size"] == [32, 32]
    assert {"torch", "onnx", "onnxruntime", "tcl"} <= set(manifest["tools"])


def test_read_again(bundle: Bundle) -> None:
    again = read_bundle(bundle.folder)
    assert (again.model_hash, again.embed_dim, again.precision, again.verified) == (bundle.model_hash, 16, "fp32", True)


def test_existing_target(tiny_model: TCL, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        build_bundle(tiny_model, tmp_path)


def test_target_that_cannot_be_written(tiny_model: TCL, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        build_bundle(tiny_model, tmp_path / "file" / "bundle")


def test_nothing_is_left_of_an_interrupted_export(
    tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.onnx.export_onnx", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(tiny_model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["image_encoder.onnx", "tokenizer.json"])
def test_missing_and_changed_files_are_named(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=f"{name}: is not the file that was exported"):
        read_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is missing"):
        read_bundle(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1}', '{"format_version": 99}'])
def test_damaged_manifest(copy: Path, content: str) -> None:
    (copy / "bundle.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"bundle\.json"):
        read_bundle(copy)
