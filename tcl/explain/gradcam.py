"""Where in the image a text comes from: Grad-CAM on one attention layer, as published.

A map is `attention * max(gradient, 0)`, averaged over the heads, without the class token's column. The attention
weights of the layer are computed explicitly and made leaves of the graph, so the backward pass ends at them: no
gradient of any parameter is computed. Letters as in `tcl.models.attention`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tcl.data.tokenizer import clean_caption
from tcl.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from tcl.models.attention import Attention, KeyValue
    from tcl.models.tcl import TCL, ImageOutput, TextOutput

# Chinese characters are words of their own to BERT.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(f"[{_HAN}]|[^\\s{_HAN}]+")

DETAIL = 8
"""A map is resampled to this many points per patch and side before peaks and regions are read off it."""


@dataclass
class CrossAttentionMaps:
    """Grad-CAM of the fusion encoder.

    Attributes:
        token_maps: one map per token position, [CLS] first; zero at padding [R, S, rows, columns].
        logits: ITM logits [R, 2].
        attention: softmax weights of the layer [R, H, S, 1 + N].
        gradient: derivative of the summed match logits by them, same shape.
    """

    token_maps: Tensor
    logits: Tensor
    attention: Tensor
    gradient: Tensor

    def caption_maps(self) -> Tensor:
        """One map per caption [R, rows, columns]: the mean over all positions, padding counted, as published."""
        return self.token_maps.mean(dim=1)


def fusion_layers(model: TCL) -> range:
    """The layers that attend to the image, numbered as in BERT."""
    bert = model.text_encoder.bert
    return range(bert.fusion_layer, bert.fusion_layer + len(bert.fusion_layers()))


def default_layer(model: TCL) -> int:
    """The layer at two fifths of the fusion encoder; of the published model the one that was published, 8 of 6 to 11.

    Raises:
        UsageError: the model has no fusion layer.
    """
    layers = fusion_layers(model)
    check_layer(model, layers.start)
    return layers[round(0.4 * (len(layers) - 1))]


def check_layer(model: TCL, layer: int) -> None:
    """Say so when the model has no such fusion layer.

    Raises:
        UsageError: it has not.
    """
    layers = fusion_layers(model)
    if not layers:
        raise UsageError(
            "this model has no fusion encoder, whose attention the heat maps are made of",
            hint="use a model whose fusion_layer is below its number of text layers",
        )
    if layer not in layers:
        raise UsageError(
            f"layer {layer} does not attend to the image", hint=f"fusion layers are {layers[0]} to {layers[-1]}"
        )


def cross_attention_maps(model: TCL, image: ImageOutput, text: TextOutput, layer: int) -> CrossAttentionMaps:
    """Grad-CAM of "these belong together" on the cross-attention of one fusion layer.

    Args:
        model: in evaluation mode.
        image: R encoded images.
        text: R encoded texts; text r is explained in image r.
        layer: numbered as in BERT.

    Raises:
        UsageError: the model has no such fusion layer.
    """
    check_layer(model, layer)
    bert = model.text_encoder.bert
    mask = text.attention_mask[:, None, None, :]
    with torch.no_grad():
        images = bert.image_key_values(image.image_embeds)
        x = text.text_embeds
        layers, place = bert.fusion_layers(), layer - bert.fusion_layer
        own = layers[place]
        for below, key_value in zip(layers[:place], images[:place], strict=True):
            x = below(x, mask, key_value)
        x = own.attention(x, mask)  # type: ignore[operator]
        weights = _attention_weights(own.crossattention, x, images[place])  # type: ignore[arg-type]
    with torch.enable_grad():
        weights.requires_grad_()
        attended = (weights @ images[place].value).transpose(1, 2).flatten(2)
        x = own.crossattention.output(attended, x)  # type: ignore[union-attr, operator]
        x = own.output(own.intermediate(x), x)  # type: ignore[operator]
        for above, key_value in zip(layers[place + 1 :], images[place + 1 :], strict=True):
            x = above(x, mask, key_value)
        logits = model.itm_head(x[:, 0])
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), weights)
    weights = weights.detach()
    maps = (weights * gradient.clamp(min=0))[..., 1:] * text.attention_mask[:, None, :, None]
    maps = maps.mean(dim=1).unflatten(-1, tuple(model.visual_encoder.grid_size))
    return CrossAttentionMaps(maps, logits.detach(), weights, gradient)


def image_attention_maps(model: TCL, pixel_values: Tensor, text: TextOutput, block: int) -> Tensor:
    """Grad-CAM of the contrastive similarity on the self-attention of one block of the image encoder.

    Args:
        model: in evaluation mode.
        pixel_values: R images, uint8 or normalised [R, 3, H, W].
        text: R encoded texts; text r is explained in image r.
        block: of the image encoder, from 0.

    Returns:
        the class token's maps [R, rows, columns].

    Raises:
        UsageError: there is no such block, or its attention keeps its weights to itself.
    """
    blocks: nn.ModuleList = model.visual_encoder.blocks  # type: ignore[assignment]
    if not 0 <= block < len(blocks):
        raise UsageError(f"the image encoder has no block {block}", hint=f"blocks are 0 to {len(blocks) - 1}")
    attention: nn.Module = blocks[block].attn  # type: ignore[assignment]
    with torch.enable_grad(), _exposed_attention(attention, block) as recorded:
        image = model.encode_image(pixel_values)
        similarity = (image.image_feat * text.text_feat.detach()).sum() / model.temp.detach()
        (gradient,) = torch.autograd.grad(similarity, recorded[0])
    maps = (recorded[0].detach() * gradient.clamp(min=0))[:, :, 0, 1:].mean(dim=1)
    return maps.unflatten(-1, tuple(model.visual_encoder.grid_size))


def _attention_weights(attention: Attention, x: Tensor, context: KeyValue) -> Tensor:
    """Softmax weights [R, H, S, N] of the queries of `x` [R, S, D] over the keys of a context."""
    query = attention.self.query(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return (query @ context.key.transpose(-1, -2) / query.shape[-1] ** 0.5).float().softmax(dim=-1).to(query.dtype)


@contextmanager
def _exposed_attention(attention: nn.Module, block: int) -> Iterator[list[Tensor]]:
    """While it lasts, a timm attention layer puts its weights into the list that is given, as a leaf of the graph.

    Not fused, timm computes the weights and passes them through a dropout module, where a hook can take them.
    """
    recorded: list[Tensor] = []
    dropout = getattr(attention, "attn_drop", None)
    if not isinstance(dropout, nn.Module) or not hasattr(attention, "fused_attn"):
        raise UsageError(f"block {block} of this image encoder does not give its attention weights")

    def record(_module: nn.Module, _inputs: object, weights: Tensor) -> Tensor:
        recorded.append(weights.detach().requires_grad_())
        return recorded[-1]

    fused = attention.fused_attn
    attention.fused_attn = False  # type: ignore[assignment]
    hook = dropout.register_forward_hook(record)
    try:
        yield recorded
    finally:
        hook.remove()
        attention.fused_attn = fused


def resample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [R, rows, columns] at another size (height, width): bicubic, as published; it may fall below zero."""
    return F.interpolate(maps[:, None].float(), size=size, mode="bicubic", align_corners=False)[:, 0]


@dataclass
class Explanation:
    """Heat maps of one caption in one image, for people.

    Attributes:
        words: of the caption, as cleaned; pieces of a word are one.
        word_maps: one map per word [words, rows, columns], non-negative, `DETAIL` points per patch and side.
        caption_map: of the whole caption [rows, columns].
        probability: that image and caption belong together.
        layer: the fusion layer that was looked at.
        cut: words that the model does not read, because the caption is too long for it.
    """

    words: list[str]
    word_maps: NDArray[np.float32]
    caption_map: NDArray[np.float32]
    probability: float
    layer: int
    cut: int


def explain(model: TCL, image: Image, caption: str, layer: int | None = None) -> Explanation:
    """Where in the image each word of a caption comes from.

    Args:
        model: in evaluation mode, with its processor.
        image: RGB.
        caption: as written; it is cleaned as in training.
        layer: a fusion layer, numbered as in BERT; by default `default_layer`.

    Raises:
        UsageError: no such layer, no fusion encoder, or a caption without words.
    """
    if not clean_caption(caption).strip():
        raise UsageError(f"the caption {caption!r} holds no words", hint="describe the image")
    layer = default_layer(model) if layer is None else layer
    check_layer(model, layer)
    input_ids, attention_mask = model.processor.texts([caption])
    with torch.no_grad():
        encoded = model.encode_image(model.processor.images([image]))
        text = model.encode_text(input_ids, attention_mask)
    maps = cross_attention_maps(model, encoded, text, layer)
    spans, cut = word_spans(model, caption, int(attention_mask.sum()))
    rows, columns = model.visual_encoder.grid_size
    # A word's map is the mean of its pieces'; so is the caption's of all its positions.
    pieces = [maps.token_maps[0, positions].mean(dim=0) for _, positions in spans]
    fine = resample(torch.stack([*pieces, maps.caption_maps()[0]]), (rows * DETAIL, columns * DETAIL))
    values = fine.clamp(min=0).cpu().numpy()
    probability = float(maps.logits[0].float().softmax(dim=-1)[1])
    return Explanation([word for word, _ in spans], values[:-1], values[-1], probability, layer, cut)


def word_spans(model: TCL, caption: str, length: int) -> tuple[list[tuple[str, list[int]]], int]:
    """Words of a cleaned caption with the positions of their tokens, and how many words are left out.

    Args:
        model: whose tokenizer cuts words into pieces.
        caption: as written.
        length: tokens that the model reads, [CLS] included.
    """
    spans = []
    position = 1  # behind [CLS]
    words = _WORD.findall(clean_caption(caption))
    # WordPiece never looks beyond a word, so the pieces of the words are those of the caption.
    for word, mask in zip(words, model.processor.tokenizer(words, None, clean=False)[1], strict=True):
        pieces = int(mask.sum()) - 1
        if pieces and position + pieces <= length:
            spans.append((word, list(range(position, position + pieces))))
        position += pieces
    return spans, len(words) - len(spans)
