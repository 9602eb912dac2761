"""Made-up inputs of the shapes of a run, which measure its time and memory before it begins."""

from __future__ import annotations

import torch
from torch import Tensor

from tcl.models.tcl import TCL


class SyntheticInputs:
    """Draws images and texts for a model; always the same."""

    def __init__(self, model: TCL) -> None:
        self._shape = model.processor.image_size
        self._words = model.processor.tokenizer.vocab_size
        self._generator = torch.Generator().manual_seed(0)

    def images(self, size: int) -> Tensor:
        """Images [size, 3, H, W], uint8."""
        return torch.randint(256, (size, 3, *self._shape), dtype=torch.uint8, generator=self._generator)

    def texts(self, size: int, length: int) -> tuple[Tensor, Tensor]:
        """`input_ids` [size, length] and a mask, bool, without padding."""
        input_ids = torch.randint(5, self._words, (size, length), generator=self._generator)
        return input_ids, torch.ones(size, length, dtype=torch.bool)
