"""A packed bundle is one file that does what the folder does."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from export.bundle import build_bundle
from tcl.encoders.bundle import Bundle
from tcl.encoders.bundle_tar import pack, unpacked
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.open import matcher_of, open_encoder
from tcl.errors import CheckpointError, UsageError
from tcl.files.cache import cache_folder
from tcl.models.tcl import TCL

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def packed(bundle: Bundle, tmp_path: Path) -> Path:
    pack(bundle.folder, tmp_path / "tiny.tar")
    return tmp_path / "tiny.tar"


def test_it_is_used_like_the_folder(bundle: Bundle, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder(str(packed))
    assert isinstance(encoder, OnnxEncoder) and encoder.model_hash == bundle.model_hash
    assert np.array_equal(encoder.encode_image(PIXELS), OnnxEncoder(bundle.folder).encode_image(PIXELS))
    monkeypatch.setenv("TCL_MODEL", str(packed))
    assert open_encoder(backend="onnx").model_hash == bundle.model_hash


def test_without_matcher_the_file_is_named_and_not_the_cache(tiny_model: TCL, tmp_path: Path) -> None:
    made = build_bundle(tiny_model, tmp_path / "small", matcher=False, check=False)
    pack(made.folder, tmp_path / "small.tar")
    with pytest.raises(UsageError) as caught:
        matcher_of(open_encoder(str(tmp_path / "small.tar")))
    assert caught.value.message.startswith(f"{tmp_path / 'small.tar'}: has no image_key_values graph and no matcher")
    assert "without --no-matcher" in str(caught.value.hint)


def test_it_is_unpacked_once(packed: Path, tmp_path: Path) -> None:
    folder = unpacked(packed)
    assert folder.is_relative_to(cache_folder())
    (folder / "mark").touch()
    shutil.copy(packed, tmp_path / "renamed.tar")
    assert unpacked(tmp_path / "renamed.tar") == folder and (folder / "mark").exists()


def test_same_bundle_same_bytes(bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "copy")
    pack(tmp_path / "copy", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        pack(bundle.folder, packed)


def test_bad_files(packed: Path, tmp_path: Path) -> None:
    content = packed.read_bytes()
    for name, part in {"empty": b"", "foreign": b"x" * 5000, "cut": content[: len(content) // 2]}.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match=name):
            open_encoder(str(path))
    with pytest.raises(UsageError, match="no such file"):
        open_encoder(str(tmp_path / "none.tar"))
    assert list((cache_folder() / "bundles").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "extra"])
def test_what_does_not_belong_there_is_not_unpacked(packed: Path, tmp_path: Path, name: str) -> None:
    with tarfile.open(packed, "a") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(CheckpointError, match=f"holds '{name}'"):
        unpacked(packed)
    assert not (tmp_path / "outside").exists()


def test_a_changed_graph_inside_is_noticed(packed: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    place = content.index(b"visual_encoder.blocks.0")
    content[place] ^= 1
    (tmp_path / "changed.tar").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"changed\.tar: \S+ is damaged"):
        open_encoder(str(tmp_path / "changed.tar"))
    assert list((cache_folder() / "bundles").iterdir()) == []
    assert open_encoder(str(packed)).encode_image(PIXELS).shape == (2, 16)  # which has the same bundle.json


@pytest.mark.parametrize("sparse", ["bundle.json", "text_encoder.onnx"])
def test_members_that_claim_more_than_there_is(packed: Path, tmp_path: Path, sparse: str) -> None:
    """A sparse file of some bytes may stand for terabytes of zeros."""
    hostile = tmp_path / "hostile.tar"
    with tarfile.open(packed) as tar, tarfile.open(hostile, "w", format=tarfile.PAX_FORMAT) as copy:
        for entry in tar:
            content = tar.extractfile(entry)
            assert content is not None
            if entry.name == sparse:
                holes = f"1\n{1 << 40}\n0\n".ljust(512, "\0").encode()
                entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": sparse}
                entry.pax_headers["GNU.sparse.realsize"] = str(1 << 40)
                entry.size, content = len(holes), io.BytesIO(holes)
            copy.addfile(entry, content)
    with tarfile.open(hostile) as tar:
        assert tar.getmember(sparse).issparse()
    with pytest.raises(CheckpointError, match="is no packed bundle"):
        unpacked(hostile)
