"""A model as a module of sentence-transformers, which this file needs. Texts and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modality import infer_batch_modality
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from tcl.encoders.embedder import Embedder
from tcl.errors import UsageError


class TclModule(InputModule):
    """Texts or images to `sentence_embedding`, computed by the model's own runtime.

    Args:
        embedder: from `tcl.load`.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    @property
    def modalities(self) -> list[Any]:
        """What `encode` takes."""
        return ["text", "image"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Ids and mask of texts, or pixels of images; `options` are those of other models."""
        processor = self.embedder.processor
        if infer_batch_modality(inputs) == "image":
            return {"pixel_values": torch.from_numpy(processor.images(inputs))}
        ids, mask = processor.texts([(prompt or "") + text for text in inputs])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` [B, E]; without gradients."""
        encoder = self.embedder.encoder
        if "pixel_values" in features:
            vectors = encoder.encode_image(features["pixel_values"].cpu().numpy())
        else:
            vectors = encoder.encode_text(_numpy(features["input_ids"]), _numpy(features["attention_mask"]))
        return features | {"sentence_embedding": torch.from_numpy(vectors)}

    def get_embedding_dimension(self) -> int:
        """Width E of a vector."""
        return self.embedder.embed_dim

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Not possible: the weights stay where `tcl.load` found them.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "sentence-transformers cannot save this model", hint="keep the run or the bundle, and use tcl.load"
        )


def _numpy(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
