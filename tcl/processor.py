"""What goes into a model: one preprocessing for training's evaluation, embedding, export and search. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tcl.data.captions import CaptionTokenizer
from tcl.data.images import decode, resize
from tcl.errors import CheckpointError

if TYPE_CHECKING:
    from PIL.Image import Image

PREPROCESS_FILE = "preprocess.json"


@dataclass(frozen=True)
class Processor:
    """Files and strings to arrays.

    Attributes:
        tokenizer: of the model's vocabulary.
        image_size: (height, width) in pixels.
        max_length: tokens per text, [CLS] included.
    """

    tokenizer: CaptionTokenizer
    image_size: tuple[int, int]
    max_length: int

    def image(self, source: str | Path | bytes | Image) -> NDArray[np.uint8]:
        """One image as uint8 [3, H, W]: decoded, RGB, resized to the model's size (bicubic, aspect ratio not kept).

        Raises:
            ImageError: it cannot be read; the message says why.
        """
        return resize(decode(source), self.image_size)

    def images(self, sources: Sequence[str | Path | bytes | Image]) -> NDArray[np.uint8]:
        """Images as uint8 [B, 3, H, W]."""
        return np.stack([self.image(source) for source in sources])

    def texts(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Captions cleaned and tokenised: `input_ids` and `attention_mask` [B, S], padded to the longest."""
        return self.tokenizer(texts, self.max_length)

    def settings(self) -> dict[str, Any]:
        """What `preprocess.json` records."""
        return {
            "image_size": list(self.image_size),
            "resize": "bicubic, aspect ratio not kept",
            "pixels": "uint8 RGB, channels first; the model normalises",
            "max_length": self.max_length,
            "text": "cleaned caption of at most 30 words, [CLS] words, no [SEP]",
        }

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `preprocess.json`."""
        self.tokenizer.save(folder)
        (folder / PREPROCESS_FILE).write_text(json.dumps(self.settings(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        try:
            settings = json.loads((folder / PREPROCESS_FILE).read_text(encoding="utf-8"))
            height, width = settings["image_size"]
            return cls(CaptionTokenizer.load(folder), (height, width), int(settings["max_length"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / PREPROCESS_FILE}: {error}", hint="export or save the model again"
            ) from error
