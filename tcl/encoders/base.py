"""The protocols of encoders and matchers: all that `embed` and `search` know of a model."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tcl.data.processor import Processor
from tcl.errors import UsageError


class Encoder(Protocol):
    """What turns pixels and tokens into vectors; torch, ONNX Runtime and TensorRT have one each.

    Attributes:
        embed_dim: width E of a vector.
        processor: the preprocessing that belongs to the model.
        model_hash: identifies the model; equal for its every backend.
        backend: e.g. `torch-cpu`, `onnx-cpu`.
        precision: e.g. `fp32`.
        lanes: how many threads may call it at once with profit.
    """

    embed_dim: int
    processor: Processor
    model_hash: str
    backend: str
    precision: str
    lanes: int

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        ...

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder that also gives what re-ranking compares with texts."""

    def encode_image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E] and the image encoder's last states [B, T, W]."""
        ...


class Matcher(Protocol):
    """What compares images with texts token by token; there is one for models in torch, one for bundles."""

    def image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E] and the last token states [B, T, W]."""
        ...

    def match(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], image_tokens: NDArray[Any]
    ) -> NDArray[np.float32]:
        """ITM logits [N, 2] of texts [N, S] with one image [1, T, W] or one each [N, T, W]; float16 or float32."""
        ...


def unverified(encoder: Encoder) -> str | None:
    """The bundle of an encoder where its graphs were not verified, or failed; or an engine that failed."""
    bundle = getattr(encoder, "bundle", None)
    if bundle is not None and not bundle.is_verified(encoder.precision):
        return str(bundle.folder)
    engine = getattr(encoder, "failed_engine", None)
    return None if engine is None else str(engine)


def check_verified(encoder: Encoder) -> None:
    """Refuse graphs and engines that failed their verification; those that had none are left to the user.

    Raises:
        UsageError: naming the bundle or the engine.
    """
    place, bundle = unverified(encoder), getattr(encoder, "bundle", None)
    if place is not None and (bundle is None or bundle.checked):
        raise UsageError(
            f"{place}: failed its verification in {encoder.precision}, so its vectors are not the model's",
            hint="export it again, take another --precision, or go on with --allow-unverified",
        )


def reading_processor(encoder: Encoder) -> Processor:
    """The encoder's preprocessing as it is for many images: torch resizes them where it is there anyway."""
    return encoder.processor.fast("torch" if encoder.backend.startswith("torch") else "pillow")
