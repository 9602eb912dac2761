"""BERT as a graph: the text encoder, the fusion encoder, and the answer decoder of VQA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from export.graphs.network import Network

if TYPE_CHECKING:
    from tcl.models.attention import Attention
    from tcl.models.bert import Bert


class Context(NamedTuple):
    """What a layer attends to: keys, turned for the product, [..., H, Dh, N], and values [..., H, N, Dh]."""

    key: str
    value: str


def key_mask(net: Network, attention_mask: str) -> str:
    """int64 [R, S] to bool [R, 1, 1, S]."""
    return net.op("Unsqueeze", net.op("Cast", attention_mask, to=9), net.integers(1, 2))


def text_tokens(net: Network, bert: Bert, input_ids: str, mask: str, only_first: bool = False) -> str:
    """States [R, S, D] of the text alone; `only_first`: [R, 1, D], those of [CLS]."""
    x = _embed(net, bert, input_ids)
    layers = list(bert.encoder.layer[: bert.fusion_layer])
    for layer in layers:
        x = _layer(net, layer, x, mask, only_first=only_first and layer is layers[-1])
    return x if layers or not only_first else net.first(x)


def fused_cls(net: Network, bert: Bert, x: str, mask: str, *images: Sequence[Context]) -> str:
    """The [CLS] state [R, 1, D] of texts [R, S, D], fused with one image each, or two that the layers see in turn."""
    layers = list(bert.fusion_layers(len(images)))
    in_turn = [image for layer in zip(*images, strict=True) for image in layer]
    for layer, image in zip(layers, in_turn, strict=True):
        x = _layer(net, layer, x, mask, image, None, only_first=layer is layers[-1])
    return x


def fused(net: Network, bert: Bert, x: str, mask: str, image: Sequence[Context]) -> str:
    """States [R, S, D] of texts, fused with their image."""
    for layer, context in zip(bert.fusion_layers(1), image, strict=True):
        x = _layer(net, layer, x, mask, context)
    return x


def key_values(net: Network, attention: Attention, states: str) -> tuple[str, str]:
    """Keys and values [B, H, N, Dh] of what a layer attends to, [B, N, D]."""
    key, value = (net.linear(part, states) for part in (attention.self.key, attention.self.value))
    return net.split_heads(key, attention.num_heads), net.split_heads(value, attention.num_heads)


def context(net: Network, key: str, value: str) -> Context:
    """Of keys and values [B, H, N, Dh]."""
    return Context(net.op("Transpose", key, perm=[0, 1, 3, 2]), value)


def image_contexts(net: Network, bert: Bert, states: str) -> list[Context]:
    """What each fusion layer needs of images, or of the question where `bert` is a decoder, [B, N, D]."""
    return [context(net, *key_values(net, layer.crossattention, states)) for layer in bert.fusion_layers()]  # type: ignore[arg-type]


def decoded(net: Network, bert: Bert, answer_ids: str, question: Sequence[Context], question_mask: str) -> str:
    """States [A, B, T, D] of A answers that see themselves, what is before them, and B questions.

    Up to the first question they see, answers are computed once for all: [A, 1, T, D].
    """
    import torch

    x = net.op("Unsqueeze", _embed(net, bert, answer_ids), net.integers(1))
    positions = bert.embeddings.position_embeddings.num_embeddings
    seen = net.weight("causal", torch.ones(positions, positions, dtype=torch.bool).tril())
    length = net.op("Shape", answer_ids, start=1, end=2)
    ends = net.op("Concat", length, length, axis=0)
    causal = net.op("Slice", seen, net.integers(0, 0), ends, net.integers(0, 1))
    for layer, asked in zip(bert.encoder.layer, question, strict=True):
        x = _layer(net, layer, x, causal, asked, question_mask, batch_axes=2)
    return x


def _embed(net: Network, bert: Bert, input_ids: str) -> str:
    """Word + position + type embeddings, normalised."""
    table = bert.embeddings
    words = net.op(
        "Gather", net.weight(f"{net.names[table.word_embeddings]}.weight", table.word_embeddings.weight), input_ids
    )
    # A text has one type, whose embedding is the same at every position.
    places = table.position_embeddings.weight + table.token_type_embeddings.weight[0]
    stored = net.weight(f"{net.names[table.position_embeddings]}.weight + type", places)
    length = net.op("Shape", input_ids, start=1, end=2)
    own = net.op("Slice", stored, net.integers(0), length, net.integers(0))
    return net.norm(table.LayerNorm, net.op("Add", words, own))


def _layer(
    net: Network,
    layer: Any,
    x: str,
    mask: str,
    image: Context | None = None,
    image_mask: str | None = None,
    *,
    only_first: bool = False,
    batch_axes: int = 1,
) -> str:
    """One layer; `only_first`: the states of the first token alone, which sees all of `x`."""
    attention = layer.attention
    key, value = (
        net.split_heads(net.linear(part, x), attention.num_heads, batch_axes)
        for part in (attention.self.key, attention.self.value)
    )
    key = net.op("Transpose", key, perm=[*range(batch_axes + 1), batch_axes + 2, batch_axes + 1])
    x = _attention(net, attention, net.first(x) if only_first else x, Context(key, value), mask, batch_axes)
    if image is not None:
        x = _attention(net, layer.crossattention, x, image, image_mask, batch_axes)
    hidden = net.op("Gelu", net.linear(layer.intermediate.dense, x))
    return _residual(net, layer.output, hidden, x)


def _attention(net: Network, attention: Any, x: str, seen: Context, mask: str | None, batch_axes: int) -> str:
    query = net.split_heads(net.linear(attention.self.query, x), attention.num_heads, batch_axes)
    width = attention.self.query.out_features // attention.num_heads
    return _residual(net, attention.output, net.attend(query, *seen, width, mask, batch_axes), x)


def _residual(net: Network, output: Any, x: str, residual: str) -> str:
    return net.norm(output.LayerNorm, net.op("Add", net.linear(output.dense, x), residual))
