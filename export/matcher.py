"""The fusion encoder for re-ranking: that of a model in torch, or that of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tcl.encoders.base import Encoder, Matcher
from tcl.encoders.torch import TorchMatcher

if TYPE_CHECKING:
    from tcl.encoders.onnx import OnnxEncoder
    from tcl.encoders.tensorrt.encoder import TensorRTEncoder


def matcher_of(encoder: Encoder) -> Matcher:
    """The fusion encoder that belongs to an encoder; shares its weights.

    Raises:
        UsageError: it is of a bundle that was exported without, or of a model whose matching head is not trained.
    """
    from tcl.encoders.torch import TorchEncoder

    if isinstance(encoder, TorchEncoder):
        from tcl.weights.untrained import check_trained

        check_trained(encoder.model.untrained, "the model", "match scores")
        return TorchMatcher(encoder.model)
    from export.onnx_matcher import OnnxMatcher

    return OnnxMatcher(cast("OnnxEncoder | TensorRTEncoder", encoder))  # there are no others
