"""The two graphs that are exported, as modules over a `TCL` model.

Inside `tcl`, `image_embeds` are token states and `image_feat` is the projected, L2-normalised vector. At the edge of
a graph the vector is called `image_embeds`, and `text_embeds` likewise: these are the names that ONNX tools know.
"""

from __future__ import annotations

from torch import Tensor, nn

from tcl.models.tcl import TCL


class ImageEncoder(nn.Module):
    """`pixel_values` uint8 [B, 3, H, W] to `image_embeds` [B, E]; scaling and normalisation of pixels are inside."""

    def __init__(self, model: TCL) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values).image_feat


class TextEncoder(nn.Module):
    """`input_ids` and `attention_mask` int64 [B, S] to `text_embeds` [B, E]."""

    def __init__(self, model: TCL) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask).text_feat
