"""Vectors from Python: the numbers of the command, in the order of the inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tcl
from tcl.data.images.decode import ImageError
from tcl.data.inputs.listing import list_inputs
from tcl.embedding.run import embed
from tcl.encoders.embedder import Embedder
from tcl.encoders.sentence_transformers import SentenceEncoder
from tcl.encoders.torch import TorchEncoder
from tcl.errors import DataError, TclError, UsageError
from tcl.models.tcl import TCL

TEXTS = ["a dog runs on the grass near a white house", "a red circle", "a small blue square", "a dog"]


@pytest.fixture
def embedder(tiny_model: TCL) -> Embedder:
    return Embedder(TorchEncoder(tiny_model))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    found = [tmp_path / f"{row}.png" for row in range(7)]
    for path in found:
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return found


def test_load(tiny_model_folder: Path, paths: list[Path]) -> None:
    loaded = tcl.load(tiny_model_folder, device="cpu")
    assert (loaded.embed_dim, loaded.backend, loaded.precision) == (16, "torch-cpu", "fp32")
    assert loaded.encode_images(paths).shape == (7, 16)
    with pytest.raises(UsageError, match="no such model"):
        tcl.load("runs/none")


def test_images_in_every_form(embedder: Embedder, paths: list[Path]) -> None:
    processor = embedder.processor
    expected = embedder.encoder.encode_image(processor.images(paths))
    opened = [Image.open(path) for path in paths]
    pixels = [np.asarray(image) for image in opened]
    for images in (paths, [str(path) for path in paths], opened, pixels, np.stack(pixels), iter(paths)):
        found = embedder.encode_images(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    for single in (paths[2], str(paths[2]), paths[2].read_bytes(), opened[2], pixels[2]):
        np.testing.assert_allclose(embedder.encode_images(single), expected[2:3], atol=1e-6)
    assert embedder.encode_images([]).shape == (0, 16)


def test_large_jpegs_are_read_as_the_command_reads_them(embedder: Embedder, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg")
    embed(list_inputs(str(tmp_path / "large.jpg"), "image"), embedder.encoder, tmp_path / "v.npy")
    np.testing.assert_allclose(embedder.encode_images(tmp_path / "large.jpg"), np.load(tmp_path / "v.npy"), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
@pytest.mark.parametrize("lanes", [1, 3])
def test_order_and_progress(embedder: Embedder, paths: list[Path], batch_size: int, lanes: int) -> None:
    embedder.encoder.lanes = lanes  # type: ignore[attr-defined]
    embedder = Embedder(embedder.encoder)
    done: list[int] = []
    found = embedder.encode_images(paths, batch_size=batch_size, progress=done.append)
    assert sum(done) == 7 and max(done) <= batch_size
    np.testing.assert_allclose(found, embedder.encode_images(paths), atol=1e-6)
    texts = TEXTS * 3
    np.testing.assert_allclose(embedder.encode_texts(texts, batch_size), embedder.encode_texts(texts), atol=1e-6)


def test_texts(embedder: Embedder) -> None:
    encoder = embedder.encoder
    expected = np.concatenate([encoder.encode_text(*encoder.processor.texts([text])) for text in TEXTS])
    done: list[int] = []
    np.testing.assert_allclose(embedder.encode_texts(TEXTS, 3, done.append), expected, atol=1e-6)
    assert done == [3, 1]
    np.testing.assert_allclose(embedder.encode_texts(TEXTS[1]), expected[1:2], atol=1e-6)
    assert embedder.encode_texts([]).shape == (0, 16)


def test_precision_of_the_vectors(embedder: Embedder, paths: list[Path]) -> None:
    """Of each vector by itself, so that those of two calls can be compared."""
    encode: Any
    inputs: Any
    for encode, inputs in ((embedder.encode_images, paths), (embedder.encode_texts, TEXTS)):
        exact = encode(inputs)
        half, whole, bits = (encode(inputs, precision=precision) for precision in ("float16", "int8", "binary"))
        assert (half.dtype, whole.dtype, bits.dtype) == (np.float16, np.int8, np.uint8)
        np.testing.assert_array_equal(half, exact.astype(np.float16))
        assert np.abs(whole.astype(int)).max(axis=1).tolist() == [127] * len(exact)
        again = whole / np.linalg.norm(whole.astype(np.float32), axis=1, keepdims=True)
        assert np.abs(again - exact).max() < 0.005
        np.testing.assert_array_equal(np.unpackbits(bits, axis=1), exact > 0)
        alone = encode(inputs[2], precision="int8")
        assert np.abs(alone[0].astype(int) - whole[2]).max() <= 1
    assert embedder.encode_texts([], precision="binary").shape == (0, 2)
    with pytest.raises(UsageError, match="precision is 'fp16', and vectors are float32, float16, int8") as caught:
        embedder.encode_texts(TEXTS, precision="fp16")  # type: ignore[arg-type]
    assert "tcl.load" in str(caught.value.hint)


def test_no_more_calls_at_once_than_lanes(tiny_model: TCL, paths: list[Path]) -> None:
    import threading

    class Watched(TorchEncoder):
        lanes, inside, most = 2, 0, 0
        lock = threading.Lock()

        def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            try:
                return super().encode_image(pixel_values)
            finally:
                with self.lock:
                    self.inside -= 1

    watched = Watched(tiny_model)
    Embedder(watched).encode_images(paths * 4, batch_size=1)
    assert 1 <= watched.most <= 2


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (["gone.jpg"], ImageError, "gone.jpg: no such file"),
        ([b"nonsense"], ImageError, "cannot read image 0 of those given: not an image"),
        ([3], UsageError, "image 0 is a int"),
        ([np.zeros((4, 4, 3), np.float32)], UsageError, r"image 0 is an array of float32 \(4, 4, 3\)"),
        ([np.zeros((4, 4, 2), np.uint8)], UsageError, r"an array of uint8 \(4, 4, 2\)"),
        ([np.zeros((0, 4, 3), np.uint8)], UsageError, r"an array of uint8 \(0, 4, 3\)"),
    ],
)
def test_bad_images(embedder: Embedder, images: list, error: type[TclError], message: str) -> None:
    with pytest.raises(error, match=message):
        embedder.encode_images(images)


def test_no_workers(embedder: Embedder, paths: list[Path]) -> None:
    with pytest.raises(UsageError, match="workers is 0, at least 1 is needed"):
        embedder.encode_images(paths, workers=0)


def test_bad_texts(embedder: Embedder) -> None:
    with pytest.raises(DataError, match="text 1 holds no words"):
        embedder.encode_texts(["a dog", "..."])
    with pytest.raises(UsageError, match="text 0 is a int"):
        embedder.encode_texts([3])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="batch_size is 0"):
        embedder.encode_texts(["a dog"], batch_size=0)


def test_an_error_of_the_first_stops_the_rest(embedder: Embedder, paths: list[Path]) -> None:
    done: list[int] = []
    with pytest.raises(ImageError):
        embedder.encode_images(["gone.jpg", *paths], batch_size=1, progress=done.append)
    assert done == []


def test_names_of_sentence_transformers(embedder: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = SentenceEncoder(embedder)
    expected = embedder.encode_texts(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=2, show_progress_bar=False), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[0], normalize_embeddings=True), expected[0], atol=1e-6)
    listed = encoder.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(listed, list) and len(listed) == 4 and listed[0].shape == (16,)
    bits = embedder.encode_texts(TEXTS, precision="binary")
    np.testing.assert_array_equal(encoder.encode(TEXTS, precision="ubinary"), bits)
    np.testing.assert_array_equal(encoder.encode(TEXTS, precision="binary"), bits.astype(int) - 128)
    whole = encoder.encode(TEXTS[0], precision="int8")
    assert isinstance(whole, np.ndarray) and whole.dtype == np.int8 and np.abs(whole.astype(int)).max() == 127
    assert encoder.get_sentence_embedding_dimension() == 16
    assert capfd.readouterr().err == ""
    encoder.encode(TEXTS, show_progress_bar=True)
    assert "4/4" in capfd.readouterr().err


@pytest.fixture
def quiet_import() -> Iterator[None]:
    pytest.importorskip("sentence_transformers")
    yield


def test_another_version_of_sentence_transformers(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, quiet_import: None
) -> None:
    """One without the modules that this one needs."""
    monkeypatch.delitem(sys.modules, "tcl.encoders.sentence_module", raising=False)
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modality", None)
    with pytest.raises(UsageError, match="another version of sentence-transformers") as caught:
        SentenceEncoder(embedder).to_sentence_transformer()
    assert caught.value.hint == "pip install '.[st]'"


def test_inside_sentence_transformers(embedder: Embedder, paths: list[Path], quiet_import: None) -> None:
    model = SentenceEncoder(embedder).to_sentence_transformer()
    assert model.get_embedding_dimension() == 16
    np.testing.assert_allclose(model.encode(TEXTS, batch_size=2), embedder.encode_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.encode(TEXTS[0]), embedder.encode_texts(TEXTS[0])[0], atol=1e-6)
    pictures = [Image.open(path) for path in paths]
    np.testing.assert_allclose(model.encode(pictures, batch_size=4), embedder.encode_images(paths), atol=1e-6)
    np.testing.assert_allclose(model.similarity(model.encode(TEXTS), model.encode(TEXTS)).diagonal(), 1, atol=1e-5)
    packed = SentenceEncoder(embedder).encode(TEXTS, precision="binary")
    np.testing.assert_array_equal(model.encode(TEXTS, precision="binary"), packed)
    with pytest.raises(UsageError, match="cannot save"):
        model.save(str(paths[0].parent / "saved"))


def test_unknown_ways_to_compute() -> None:
    with pytest.raises(UsageError, match="backend 'foo' is unknown"):
        tcl.load("runs/none", backend="foo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        tcl.load("runs/none", device="tpu")


def test_what_it_says_of_itself(embedder: Embedder) -> None:
    assert repr(embedder) == f"<Embedder of model {embedder.model_hash[:12]}: torch-cpu, fp32, 16 dimensions>"
