"""Re-ranking with a bundle gives the logits of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.bundle import build_bundle
from tcl.encoders.bundle import Bundle
from tcl.encoders.onnx import OnnxEncoder, OnnxMatcher
from tcl.encoders.torch import TorchMatcher
from tcl.errors import UsageError
from tcl.models.tcl import TCL
from tests.conftest import CAPTIONS

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def matchers(tiny_model: TCL, every_precision: Bundle) -> tuple[TorchMatcher, OnnxMatcher]:
    return TorchMatcher(tiny_model), OnnxMatcher(OnnxEncoder(every_precision.folder, lanes=2))


def test_one_image_for_all_texts_and_one_for_each(tiny_model: TCL, matchers: tuple[TorchMatcher, OnnxMatcher]) -> None:
    ids, mask = tiny_model.processor.texts(CAPTIONS)
    (vectors, tokens), (expected_vectors, expected_tokens) = (m.image_tokens(PIXELS) for m in reversed(matchers))
    np.testing.assert_allclose(vectors, expected_vectors, atol=1e-5)
    np.testing.assert_allclose(tokens, expected_tokens, atol=1e-5)
    for images in (tokens[:1], tokens, tokens[1:2], tokens[:1]):  # one image again, behind others
        expected, actual = (matcher.match(ids, mask, images) for matcher in matchers)
        assert actual.shape == (4, 2)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_half_precision_of_tokens_and_graphs(tiny_model: TCL, every_precision: Bundle) -> None:
    ids, mask = tiny_model.processor.texts(CAPTIONS)
    tokens = TorchMatcher(tiny_model).image_tokens(PIXELS)[1]
    expected = TorchMatcher(tiny_model).match(ids, mask, tokens)
    for precision in ("fp16", "int8"):
        matcher = OnnxMatcher(OnnxEncoder(every_precision.folder, precision))
        np.testing.assert_allclose(matcher.match(ids, mask, tokens.astype(np.float16)), expected, atol=0.2)


def test_an_image_that_changed_in_place_is_not_taken_for_the_last(
    tiny_model: TCL, matchers: tuple[TorchMatcher, OnnxMatcher]
) -> None:
    ids, mask = tiny_model.processor.texts(CAPTIONS)
    tokens = matchers[0].image_tokens(PIXELS)[1]
    images = tokens[:1].copy()
    first = matchers[1].match(ids, mask, images)
    images[:] = tokens[1:2]
    second = matchers[1].match(ids, mask, images)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(second, matchers[0].match(ids, mask, images), rtol=0, atol=1e-4)


def test_a_bundle_without_it(tiny_model: TCL, tmp_path: Path) -> None:
    made = build_bundle(tiny_model, tmp_path / "small", matcher=False, check=False)
    with pytest.raises(UsageError, match="has no image_key_values graph") as caught:
        OnnxMatcher(OnnxEncoder(made.folder))
    assert "without --no-matcher" in str(caught.value.hint)
