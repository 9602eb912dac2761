"""Match one query with many candidates by the fusion encoder. What depends on one side only is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from tcl.models.tcl import TCL

Item = TypeVar("Item")

CHUNK = 16  # candidates that pass through the fusion encoder at once


def match_text(model: TCL, text: str, images: Sequence[str | Path]) -> NDArray[np.float32]:
    """ITM logits [N, 2] of one text with N images (paths or `scenes:` references).

    Raises:
        ImageError: an image cannot be read.
    """
    import torch

    with torch.inference_mode():
        output = model.encode_text(*model.processor.texts([text]))
        logits = []
        for chunk in _chunks(images):
            image = model.encode_image(model.processor.images(chunk))
            rows = len(chunk)
            states, mask = output.text_embeds.expand(rows, -1, -1), output.attention_mask.expand(rows, -1)
            fused = model.fuse(states, mask, model.image_key_values(image.image_embeds))
            logits.append(model.itm_head(fused[:, 0]))
        return _to_numpy(logits)


def match_image(model: TCL, image: str | Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """ITM logits [N, 2] of one image (a path or a `scenes:` reference) with N texts.

    Raises:
        ImageError: the image cannot be read.
    """
    import torch

    with torch.inference_mode():
        key_values = model.image_key_values(model.encode_image(model.processor.images([image])).image_embeds)
        logits = []
        for chunk in _chunks(texts):
            text = model.encode_text(*model.processor.texts(chunk))
            logits.append(model.itm_head(model.fuse(text.text_embeds, text.attention_mask, key_values)[:, 0]))
        return _to_numpy(logits)


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _to_numpy(logits: Sequence[Tensor]) -> NDArray[np.float32]:
    import torch

    return torch.cat(list(logits)).cpu().numpy()
