"""The fusion encoder of a bundle, in ONNX Runtime or TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tcl.encoders.onnx import OnnxEncoder
    from tcl.encoders.tensorrt.encoder import TensorRTEncoder


class OnnxMatcher:
    """Re-ranking with a bundle: what `TorchMatcher` is for a model.

    Args:
        encoder: of the bundle.

    Raises:
        UsageError: the bundle was exported without these graphs.
        CheckpointError: it is damaged.
    """

    def __init__(self, encoder: OnnxEncoder | TensorRTEncoder) -> None:
        self._encoder = encoder
        self._key_values = encoder.session("image_key_values")
        self._matcher = encoder.session("matcher")
        self._last: tuple[NDArray[Any], NDArray[Any]] | None = None

    def image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E] and the last token states [B, T, W]."""
        return self._encoder.encode_image_tokens(pixel_values)

    def match(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], image_tokens: NDArray[Any]
    ) -> NDArray[np.float32]:
        """ITM logits [N, 2] of texts [N, S] with one image [1, T, W] or one each [N, T, W]; float16 or float32."""
        images = self._of_one(image_tokens) if len(image_tokens) == 1 else self._project(image_tokens)
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "image_key_values": images}
        logits: NDArray[np.float32] = self._matcher.run(["itm_logits"], feed)[0]
        return logits

    def _of_one(self, image_tokens: NDArray[Any]) -> NDArray[Any]:
        """Keys and values of one image, kept for the next texts that it is compared with."""
        if self._last is None or not np.array_equal(self._last[0], image_tokens):
            self._last = image_tokens.copy(), self._project(image_tokens)
        return self._last[1]

    def _project(self, image_tokens: NDArray[Any]) -> NDArray[Any]:
        feed = {"image_tokens": np.ascontiguousarray(image_tokens, dtype=np.float32)}
        projected: NDArray[Any] = self._key_values.run(["image_key_values"], feed)[0]
        return projected
