"""The fusion encoder for re-ranking: that of a model in torch, or that of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tcl.embedding.run import Encoder
from tcl.search.rerank import Matcher

if TYPE_CHECKING:
    from torch import Tensor

    from tcl.encoders.open import OnnxEncoder
    from tcl.encoders.tensorrt.encoder import TensorRTEncoder
    from tcl.models.attention import Attention
    from tcl.models.tcl import TCL


class TorchMatcher:
    """A `TCL` model as a `Matcher`.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: TCL) -> None:
        self.model = model

    def image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E] and the last token states [B, T, W]."""
        import torch

        with torch.inference_mode():
            image = self.model.encode_image(pixel_values)
            return image.image_feat.float().cpu().numpy(), image.image_embeds.float().cpu().numpy()

    def match(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], image_tokens: NDArray[Any]
    ) -> NDArray[np.float32]:
        """ITM logits [N, 2] of texts [N, S] with one image [1, T, W] or one each [N, T, W]; float16 or float32."""
        import torch

        # One text for all images is encoded once.
        alike = bool((input_ids == input_ids[:1]).all() and (attention_mask == attention_mask[:1]).all())
        rows = slice(1) if alike else slice(None)
        with torch.inference_mode():
            text = self.model.encode_text(input_ids[rows], attention_mask[rows])
            images = torch.as_tensor(np.asarray(image_tokens), device=self.model.device)
            images = images.to(self.model.vision_proj.weight.dtype)
            logits = self._match(text.text_embeds, text.attention_mask, images).float().cpu().numpy()
        return np.broadcast_to(logits, (len(input_ids), 2))

    def _match(self, states: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """The fusion layers as far as [CLS] needs them: behind the last self-attention it is alone.

        Args:
            states: of texts [R, S, D].
            mask: bool [R, S].
            images: token states [B, T, W]; R is B, or one of them is 1.
        """
        mask = mask[:, None, None, :]
        layers: Any = self.model.text_encoder.bert.fusion_layers()
        x = states
        for number, layer in enumerate(layers):
            if number < len(layers) - 1:
                x = layer.attention(x, mask)
            else:
                x = layer.attention(x[:, :1], mask, layer.attention.key_value(x))
            if len(images) == 1:
                x = layer.crossattention(x, None, layer.crossattention.key_value(images))
            else:
                # Up to here a single text has no image in it; from here on there is one of it for each.
                x, mask = x.expand(len(images), -1, -1), mask.expand(len(images), -1, -1, -1)
                x = attend_directly(layer.crossattention, x, images)
            x = layer.output(layer.intermediate(x), x)
        return self.model.itm_head(x[:, 0])  # type: ignore[no-any-return]


def attend_directly(attention: Attention, x: Tensor, images: Tensor) -> Tensor:
    """Cross-attention of a short text with its own image, without that image's keys and values.

    A query times the projection of a token is the query, projected back, times the token; and a weighted mean of
    projected tokens is the projection of their mean. So the few tokens of the text are projected rather than the many
    of the image. The keys' bias adds the same to every token's score, which the softmax takes out.

    Args:
        attention: of a fusion layer.
        x: states [B, S, D].
        images: token states [B, T, W].
    """
    import torch.nn.functional as F

    (rows, length, width), heads = x.shape, attention.num_heads
    key = attention.self.key.weight.view(heads, -1, images.shape[-1])  # [H, Dh, W]
    value = attention.self.value.weight.view_as(key)
    query = attention.self.query(x).view(rows, length, heads, -1).transpose(1, 2)  # [B, H, S, Dh]
    scale = (width // heads) ** -0.5
    query = (query @ key).flatten(1, 2)[:, None]  # [B, 1, H S, W]
    tokens = images[:, None]
    means = F.scaled_dot_product_attention(query, tokens, tokens, scale=scale).view(rows, heads, length, -1)
    attended = (means @ value.transpose(1, 2)).transpose(1, 2).flatten(2) + attention.self.value.bias
    return attention.output(attended, x)  # type: ignore[no-any-return]


def matcher_of(encoder: Encoder) -> Matcher:
    """The fusion encoder that belongs to an encoder; shares its weights.

    Raises:
        UsageError: it is of a bundle that was exported without, or of a model whose matching head is not trained.
    """
    from tcl.encoders.open import TorchEncoder

    if isinstance(encoder, TorchEncoder):
        from tcl.weights.untrained import check_trained

        check_trained(encoder.model.untrained, "the model", "match scores")
        return TorchMatcher(encoder.model)
    from export.onnx_matcher import OnnxMatcher

    return OnnxMatcher(cast("OnnxEncoder | TensorRTEncoder", encoder))  # there are no others
