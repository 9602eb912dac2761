"""The fusion encoder in torch: the same logits as the model's own, from images and from kept tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tcl.encoders.torch import TorchEncoder, TorchMatcher
from tcl.errors import DataError, UsageError
from tcl.models.tcl import TCL
from tcl.search.exact import ExactCollection, Hit
from tcl.search.rerank import Reranker, check_kinds
from tests.vectors.vector_files import unit, write

IMAGES = [f"scenes:val:0:{index}" for index in range(5)]
TEXTS = ["a small red circle", "a dog", "two yellow triangles below a purple ring"]


@pytest.fixture(scope="module")
def logits(tiny_model: TCL) -> NDArray[np.float32]:
    """Of every image with every text [5, 3, 2], one pair at a time, by the model itself."""
    with torch.inference_mode():
        pairs = [
            tiny_model.match(
                tiny_model.encode_image(tiny_model.processor.images([image])),
                tiny_model.encode_text(*tiny_model.processor.texts([text])),
            )[0]
            for image in IMAGES
            for text in TEXTS
        ]
        found: NDArray[np.float32] = torch.stack(pairs).unflatten(0, (5, 3)).numpy()
    return found


def test_tokens_are_those_of_the_model(tiny_model: TCL) -> None:
    pixels = tiny_model.processor.images(IMAGES)
    vectors, tokens = TorchMatcher(tiny_model).image_tokens(pixels)
    np.testing.assert_array_equal(vectors, TorchEncoder(tiny_model).encode_image(pixels))
    assert tokens.shape == (5, 17, 32) and tokens.dtype == np.float32


def test_one_text_with_many_images(tiny_model: TCL, logits: NDArray[np.float32]) -> None:
    matcher = TorchMatcher(tiny_model)
    tokens = matcher.image_tokens(tiny_model.processor.images(IMAGES))[1]
    for column, text in enumerate(TEXTS):
        ids, mask = tiny_model.processor.texts([text] * 5)
        np.testing.assert_allclose(matcher.match(ids, mask, tokens), logits[:, column], atol=1e-5)
        np.testing.assert_allclose(matcher.match(ids, mask, tokens.astype(np.float16)), logits[:, column], atol=2e-2)
        np.testing.assert_allclose(matcher.match(ids, mask, tokens[:1]), logits[[0] * 5, column], atol=1e-5)


def test_one_image_with_many_texts_and_pairs(tiny_model: TCL, logits: NDArray[np.float32]) -> None:
    """Texts of different lengths, so that some are padded."""
    matcher = TorchMatcher(tiny_model)
    tokens = matcher.image_tokens(tiny_model.processor.images(IMAGES))[1]
    ids, mask = tiny_model.processor.texts(TEXTS)
    np.testing.assert_allclose(matcher.match(ids, mask, tokens[3:4]), logits[3], atol=1e-5)
    np.testing.assert_allclose(matcher.match(ids, mask, tokens[1:4]), logits[[1, 2, 3], [0, 1, 2]], atol=1e-5)


class Images:
    """Five images; with tokens, or without."""

    name, kind, root, dim = "images", "image", Path(), 16

    def __init__(self, tokens: NDArray[np.float16] | None = None, root: Path = root) -> None:
        self.kept, self.root = tokens, root

    def __len__(self) -> int:
        return 5

    def check_model(self, model_hash: str) -> None:
        return None

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        raise NotImplementedError

    def tokens(self, hits: list[Hit]) -> NDArray[np.float16] | None:
        return None if self.kept is None else self.kept[[hit.row for hit in hits]]


HITS = [Hit(row, IMAGES[row], 0.5) for row in (4, 0, 2, 1, 3)]


def test_rerank_images(tiny_model: TCL, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the images and from kept tokens, in chunks."""
    monkeypatch.setattr("tcl.search.rerank.CHUNK", 2)
    matcher = TorchMatcher(tiny_model)
    kept = matcher.image_tokens(tiny_model.processor.images(IMAGES))[1].astype(np.float16)
    expected = np.argsort(-logits[:, 1, 1], kind="stable").tolist()
    for collection in (Images(), Images(kept)):
        ranked = Reranker(matcher, tiny_model.processor, collection, None).by_text(TEXTS[1], HITS)
        assert [hit.row for hit in ranked] == expected
        probabilities = torch.tensor(logits[expected, 1]).softmax(-1)[:, 1]
        np.testing.assert_allclose([hit.match or 0 for hit in ranked], probabilities, atol=5e-3)
    assert Reranker(matcher, tiny_model.processor, Images(), None).by_text(TEXTS[1], []) == []


def test_kept_tokens_need_no_image(tiny_model: TCL) -> None:
    matcher = TorchMatcher(tiny_model)
    kept = matcher.image_tokens(tiny_model.processor.images(IMAGES))[1].astype(np.float16)
    gone = [Hit(row, f"gone-{row}.jpg", 0.5) for row in range(5)]
    assert len(Reranker(matcher, tiny_model.processor, Images(kept), None).by_text("a dog", gone)) == 5


def test_hits_that_cannot_be_read_come_last(
    tiny_model: TCL, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image has gone, of one image the tokens are damaged; whatever chunk they are in."""
    monkeypatch.setattr("tcl.search.rerank.CHUNK", 2)
    matcher = TorchMatcher(tiny_model)
    kept = matcher.image_tokens(tiny_model.processor.images(IMAGES))[1].astype(np.float16)

    class Damaged(Images):
        def tokens(self, hits: list[Hit]) -> NDArray[np.float16] | None:
            if any(hit.row == 2 for hit in hits):
                raise DataError("row 2 is not what was kept")
            return super().tokens(hits)

    gone = [replace(hit, path="gone.jpg") if hit.row == 2 else hit for hit in HITS]
    expected = [row for row in np.argsort(-logits[:, 1, 1], kind="stable").tolist() if row != 2]
    for collection, hits, reason in (
        (Images(), gone, "cannot read image gone.jpg: no such file"),
        (Damaged(kept), HITS, "row 2 is not what was kept"),
    ):
        ranked = Reranker(matcher, tiny_model.processor, collection, None).by_text(TEXTS[1], hits)
        assert [hit.row for hit in ranked] == [*expected, 2]
        assert (ranked[-1].match, ranked[-1].score, ranked[-1].unread) == (None, 0.5, reason)
        assert all(hit.unread is None for hit in ranked[:-1])


def test_images_are_opened_where_they_are(tiny_model: TCL, tmp_path: Path) -> None:
    """By their path where it is not their id; from the folder that was embedded, or the one they moved to."""
    for folder in ("before", "now"):
        (tmp_path / folder).mkdir()
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(6)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / ("before" if number < 3 else "now") / f"{number % 3}.png")
    # Ids that are names of other images.
    hits = [Hit(0, "0.png", 0.5), Hit(1, "2.png", 0.5, path="1.png"), Hit(2, "1.png", 0.5, path="2.png")]
    seen: list[NDArray[np.uint8]] = []

    class Watched(TorchMatcher):
        def image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            seen.append(pixel_values)
            return super().image_tokens(pixel_values)

    collection = Images(root=tmp_path / "before")
    for root, expected in ((None, pictures[:3]), (tmp_path / "now", pictures[3:])):
        Reranker(Watched(tiny_model), tiny_model.processor, collection, root).by_text("a dog", hits)
        np.testing.assert_array_equal(seen.pop(), tiny_model.processor.images(expected))


def test_few_pairs_pass_at_once(tiny_model: TCL) -> None:
    """However many hits, memory stays the same, and each keeps its own logit."""
    sizes: list[int] = []

    class Counting:
        """Says of the i-th pair that it fits the better the larger i."""

        def image_tokens(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return np.zeros((len(pixels), 16), np.float32), np.zeros((len(pixels), 17, 32), np.float32)

        def match(
            self, ids: NDArray[np.int64], mask: NDArray[np.int64], tokens: NDArray[np.float32]
        ) -> NDArray[np.float32]:
            assert len(tokens) in (1, len(ids)) and len(mask) == len(ids)
            first = sum(sizes)
            sizes.append(len(ids))
            return np.stack([np.zeros(len(ids)), np.arange(first, first + len(ids))], axis=1).astype(np.float32)

    hits = [Hit(row, "scenes:val:0:0", 0.5, "a dog") for row in range(40)]
    reranker = Reranker(Counting(), tiny_model.processor, Images(), None)
    for rank in (
        lambda: reranker.by_text("a dog", hits),
        lambda: reranker.by_image(np.zeros((3, 32, 32), np.uint8), hits),
    ):
        assert [(hit.row, hit.logit) for hit in rank()] == [(row, row) for row in range(39, -1, -1)]
        assert sizes == [16, 16, 8]
        sizes.clear()


def test_texts_are_compared_with_images() -> None:
    check_kinds("text", Images())
    with pytest.raises(UsageError, match="query and vectors are both images"):
        check_kinds("image", Images())


def test_rerank_texts(
    tiny_model: TCL, logits: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcl.search.rerank.CHUNK", 2)
    collection = ExactCollection(write(tmp_path / "v.npy", unit(3)))
    hits = [Hit(row, str(row), 0.5, TEXTS[row]) for row in (2, 0, 1)]
    reranker = Reranker(TorchMatcher(tiny_model), tiny_model.processor, collection, None)
    ranked = reranker.by_image(tiny_model.processor.image(IMAGES[2]), hits)
    assert [hit.row for hit in ranked] == np.argsort(-logits[2, :, 1], kind="stable").tolist()
