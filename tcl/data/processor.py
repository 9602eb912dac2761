"""What goes into a model: one preprocessing for training's evaluation, embedding, export and search."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl.data.images.decode import Resizer, Source, decode, resize_into
from tcl.data.tokenizer import CaptionTokenizer
from tcl.errors import CheckpointError, MissingExtraError
from tcl.files.json_object import Malformed, read_object

PREPROCESS_FILE = "preprocess.json"
LARGEST_SIDE = 8192  # pixels
LONGEST_TEXT = 8192  # tokens
SURPLUS = 2  # pixels that a reduced JPEG keeps per pixel of the model's size, along each side


@dataclass(frozen=True)
class Processor:
    """Files and strings to arrays.

    Attributes:
        tokenizer: of the model's vocabulary.
        image_size: (height, width) in pixels.
        max_length: tokens per text, [CLS] included.
        resizer: `pillow` as published, or `torch`, see `tcl.data.images.decode.Resizer`.
        reduced: large JPEGs are decoded at a fraction of their resolution, see `decoding`.
    """

    tokenizer: CaptionTokenizer
    image_size: tuple[int, int]
    max_length: int
    resizer: Resizer = "pillow"
    reduced: bool = False

    def fast(self, resizer: Resizer = "pillow") -> Processor:
        """The same for many images: large JPEGs are read in a fraction of the time, at nearly the same pixels.

        Args:
            resizer: `torch` for whoever has imported it anyway.

        Raises:
            MissingExtraError: it is not installed.
        """
        if resizer == "torch" and "torch" not in sys.modules and find_spec("torch") is None:
            raise MissingExtraError("torch", "train")
        return replace(self, resizer=resizer, reduced=True)

    def image(self, source: Source) -> NDArray[np.uint8]:
        """One image as uint8 [3, H, W]: decoded, RGB, resized to the model's size (bicubic, aspect ratio not kept).

        Raises:
            ImageError: it cannot be read; the message says why.
        """
        pixels = np.empty((3, *self.image_size), np.uint8)
        self.image_into(source, pixels)
        return pixels

    def image_into(self, source: Source, pixels: NDArray[np.uint8]) -> None:
        """The same, written to `pixels` [3, H, W]: a row of a batch; when it cannot be read, they stay as they are."""
        height, width = self.image_size
        at_least = (SURPLUS * height, SURPLUS * width) if self.reduced else None
        resize_into(decode(source, at_least), pixels, self.resizer)

    def images(self, sources: Sequence[Source]) -> NDArray[np.uint8]:
        """Images as uint8 [B, 3, H, W]."""
        batch = np.empty((len(sources), 3, *self.image_size), np.uint8)
        for source, pixels in zip(sources, batch, strict=True):
            self.image_into(source, pixels)
        return batch

    def texts(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Captions cleaned and tokenised: `input_ids` and `attention_mask` [B, S], padded to the longest."""
        return self.tokenizer(texts, self.max_length)

    def decoding(self) -> dict[str, Any]:
        """How pixels were come by, for the record; unlike `settings` no part of the model, as it hardly matters."""
        jpeg = f"at 1/2, 1/4 or 1/8 of its resolution while {SURPLUS} times the image size is left"
        return {"resizer": self.resizer, "jpeg": jpeg if self.reduced else "every pixel"}

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
        path = folder / PREPROCESS_FILE
        try:
            settings = read_object(path, {"image_size": [int], "max_length": int})
            sides, length = settings["image_size"], settings["max_length"]
            if len(sides) != 2 or not all(0 < side <= LARGEST_SIDE for side in sides):
                raise Malformed(f"image_size is {str(sides)[:60]}, not two numbers from 1 to {LARGEST_SIDE}")
            if not 0 < length <= LONGEST_TEXT:
                raise Malformed(f"max_length is {length}, not a number from 1 to {LONGEST_TEXT}")
        except (OSError, Malformed) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"{path}: {reason}", hint="export or save the model again") from error
        return cls(CaptionTokenizer.load(folder), (sides[0], sides[1]), length)
