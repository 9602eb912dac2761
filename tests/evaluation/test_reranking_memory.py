"""Re-ranking has as many token states in memory for a large set as for a small one."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.evaluation.reranking import PackedTexts
from tcl.evaluation.retrieval import evaluate_retrieval
from tcl.models.tcl import TCL

BATCH, TEXTS = 3, 4
EVERY = 10**6  # candidates: each image meets all texts, as one that every text finds near
CAPTION = "a small red circle"


class Alive:
    """Bytes of those states that have not been freed: now, and at most."""

    def __init__(self) -> None:
        self.peak = 0
        self._states: list[weakref.ref[Tensor]] = []

    def add(self, states: Tensor | None) -> None:
        if states is not None:
            self._states.append(weakref.ref(states))
        there = [state for reference in self._states if (state := reference()) is not None]
        self.peak = max(self.peak, sum(state.nbytes for state in there))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> dict[str, Alive]:
    """Token states of images, and of texts, from now on."""
    states = {"images": Alive(), "texts": Alive()}
    encode, pack = TCL.encode_image, PackedTexts.__init__

    def encoding(self: TCL, pixel_values: Any) -> Any:
        output = encode(self, pixel_values)
        states["images"].add(output.image_embeds)
        return output

    def packing(self: PackedTexts, *arguments: Any, **options: Any) -> None:
        pack(self, *arguments, **options)
        states["texts"].add(self._states)

    monkeypatch.setattr(TCL, "encode_image", encoding)
    monkeypatch.setattr(PackedTexts, "__init__", packing)
    monkeypatch.setattr("tcl.evaluation.reranking.TEXTS", TEXTS)
    return states


def pairs(folder: Path, images: int) -> PairIndex:
    draw = np.random.default_rng(0)
    rows = []
    for number in range(images):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "captions": [CAPTION, CAPTION]}))
    path = folder / f"{images}.jsonl"
    path.write_text("\n".join(rows))
    return read_pairs([str(path)])


@pytest.mark.parametrize("kept", [0, 1], ids=["nothing kept", "a batch of images kept"])
def test_token_states_in_memory(tiny_model: TCL, tmp_path: Path, alive: dict[str, Alive], kept: int) -> None:
    width, length = tiny_model.text_proj.in_features, tiny_model.processor.texts([CAPTION])[0].shape[1]
    of_batch, of_text = BATCH * 17 * width * 4, length * width * 4  # 4 x 4 patches and [CLS], float32
    memory = 2 * kept * of_batch  # a half is for texts, of which each set has more than fit
    peaks = []
    for images in (9, 27):
        for states in alive.values():
            states.peak = 0
        result = evaluate_retrieval(
            tiny_model, pairs(tmp_path, images), rerank=EVERY, batch_size=BATCH, workers=1, token_memory=memory
        )
        assert result.reranked is not None and result.images == images
        peaks.append((alive["images"].peak, alive["texts"].peak))
    small, large = peaks
    # A batch is still there while the one behind it is encoded; of texts there is one chunk at a time.
    assert small == large == ((kept + 2) * of_batch, TEXTS * of_text)
