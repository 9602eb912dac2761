"""What the embedding benchmarks embed, and with what: small images, and an encoder that costs next to nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer

CAPTIONS = ["a small red circle left of a blue square", "two yellow triangles below a purple ring"]
GRID = 4  # an image is what its 4 x 4 tiles are on average


def make_processor(side: int = 32) -> Processor:
    """A preprocessing like that of a model."""
    return Processor(CaptionTokenizer.train(CAPTIONS, 200), (side, side), 25)


@dataclass
class ProjectionEncoder:
    """A random projection of coarse pixels or token counts: no model, but a vector says something of its input.

    Attributes:
        processor: of the inputs.
        lanes: threads that may call it.
        log: gets one byte for each batch that was encoded.
        seconds: that a call takes at least.
        fits: inputs for which memory suffices.
    """

    processor: Processor = field(default_factory=make_processor)
    lanes: int = 1
    log: Path | None = None
    seconds: float = 0.0
    fits: int = 1 << 30
    embed_dim: int = 16
    model_hash: str = "0123456789abcdef" * 4
    backend: str = "numpy-cpu"
    precision: str = "fp32"

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to vectors [B, E]."""
        batch, channels, height, width = pixel_values.shape
        step = (height // GRID, width // GRID)
        tiles = pixel_values.reshape(batch, channels, GRID, step[0], GRID, step[1])[:, :, :, 0, :, 0]
        return self._project(tiles.reshape(batch, -1).astype(np.float32) / 255 - 0.5)

    def encode_image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, with four tokens [B, 4, E]."""
        vectors = self.encode_image(pixel_values)
        return vectors, np.stack([vectors * number for number in range(1, 5)], axis=1)

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to vectors [B, E]."""
        counts = np.zeros((len(input_ids), 200), np.float32)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            np.add.at(counts[row], ids[mask > 0], 1)
        return self._project(counts)

    def _project(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(features) > self.fits:
            raise MemoryError
        weights = np.random.default_rng(features.shape[1]).standard_normal((features.shape[1], self.embed_dim))
        # Row by row: a product of all at once sums in an order that depends on how many there are.
        vectors = np.stack([row @ weights.astype(np.float32) for row in features])
        time.sleep(self.seconds)
        if self.log is not None:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, b".")
            os.close(descriptor)
        length: NDArray[Any] = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(length, 1e-6)).astype(np.float32)


def make_images(folder: Path, count: int, side: int = 24) -> Path:
    """A folder of that many small PNGs, of which every 97th is broken."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number}.png"
        if number % 97 == 96:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path, compress_level=0)
    return folder
