"""BERT as TCL uses it: a text encoder, a fusion encoder with cross-attention to image tokens, and the MLM head.

Layers `[0, fusion_layer)` read text alone; layers `[fusion_layer, L)` also attend to the image. Modules have BERT's
names, so published checkpoints load by name. Letters as in `tcl.models.attention`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.attention import Attention, KeyValue, ResidualOutput, Tokens
from tcl.models.fused_linear import gelu_linear
from tcl.models.vision import init_gain


class Intermediate(nn.Module):
    """The widening half of the feed-forward sub-layer, with exact (erf) GELU."""

    def __init__(self, width: int, intermediate_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, intermediate_width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Post-norm transformer layer: self-attention, cross-attention when it has one, feed-forward."""

    def __init__(
        self, width: int, num_heads: int, intermediate_width: int, image_width: int | None, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, width, dropout, eps)
        if image_width is not None:
            self.crossattention = Attention(width, num_heads, image_width, dropout, eps)
        self.intermediate = Intermediate(width, intermediate_width)
        self.output = ResidualOutput(intermediate_width, width, dropout, eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        image: KeyValue | None = None,
        image_mask: Tensor | None = None,
        tokens: Tokens | None = None,
        wanted: Tokens | None = None,
        attended: bool = False,
    ) -> Tensor:
        """States [R, S, D], or packed ones of `tokens`, to the same, or to those of the `wanted` tokens alone.

        Args:
            attended: `x` has passed this layer's self-attention already.
        """
        context = None if wanted is None or attended else self.attention.key_value(x, tokens)
        if wanted is not None:
            x, tokens = wanted.select(x, tokens), wanted
        if not attended:
            x = self.attention(x, mask, context, tokens)
        if image is not None:
            x = self.crossattention(x, image_mask, image, tokens)
        return self.output.add(gelu_linear(self.intermediate.dense(x), self.output.dense), x)


class Embeddings(nn.Module):
    """Word + position + type embeddings, normalised."""

    def __init__(self, vocab_size: int, width: int, max_positions: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.position_embeddings = nn.Embedding(max_positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, sparse_gradient: bool = False) -> Tensor:
        """States [R, S, D]; `sparse_gradient`: on a CPU, that of the word embeddings has the words that were read."""
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        sparse = sparse_gradient and input_ids.device.type == "cpu"
        words = F.embedding(input_ids, self.word_embeddings.weight, sparse=sparse)
        x = words + positions + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x))


class Encoder(nn.Module):
    """The stack of layers (a module of its own only because BERT's parameter names say so)."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class Bert(nn.Module):
    """Text encoder (layers before `fusion_layer`) and fusion encoder (the others) over one embedding table."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        intermediate_width: int,
        max_positions: int,
        fusion_layer: int,
        image_width: int,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.fusion_layer = fusion_layer
        self.images_per_text = 1  # two where `tcl.models.classifier` has doubled the fusion layers
        self.embeddings = Embeddings(vocab_size, width, max_positions, dropout, eps)
        widths = [image_width if layer >= fusion_layer else None for layer in range(num_layers)]
        self.encoder = Encoder([Layer(width, num_heads, intermediate_width, w, dropout, eps) for w in widths])

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Tokens | None = None,
        sparse_gradient: bool = False,
    ) -> Tensor:
        """Text alone.

        Args:
            input_ids: int64 [R, S].
            attention_mask: bool [R, S], True at tokens.
            tokens: compute only these; the states of the others are zeros.
            sparse_gradient: of the word embeddings. For an objective that also gives them a dense one, as MLM does:
                the sparse one is added to it, and no second large matrix has to be filled.

        Returns:
            Token states [R, S, D].
        """
        x = self.embeddings(input_ids, sparse_gradient)
        mask = attention_mask[:, None, None, :]
        if tokens:
            x = tokens.gather(x)
        for layer in self.encoder.layer[: self.fusion_layer]:
            x = layer(x, mask, None, None, tokens)
        return tokens.spread(x) if tokens else x

    def fusion_layers(self, images: int = 1) -> nn.ModuleList:
        """The layers that a text with so many images passes through; of doubled ones, one image takes every other."""
        return self.encoder.layer[self.fusion_layer :: self.images_per_text // images]

    def image_key_values(self, image_embeds: Tensor) -> list[KeyValue]:
        """Keys and values of the images [B, N, Dv] for each fusion layer, or for each pair of doubled ones."""
        return [layer.crossattention.key_value(image_embeds) for layer in self.fusion_layers()]  # type: ignore[union-attr, operator]

    def fuse(
        self,
        text_embeds: Tensor,
        attention_mask: Tensor,
        *images: Iterable[KeyValue],
        tokens: Tokens | None = None,
        wanted: Tokens | None = None,
        attended: bool = False,
    ) -> Tensor:
        """Text states [R, S, D] with the images of `image_key_values` [B, ...]; row r goes with image r % B.

        Two lists give every text two images, which the doubled layers see in turn.

        Args:
            tokens: compute only these; the states of the others are zeros.
            wanted: the result is the states of these, packed [T, D]; the last layer then computes no others. For a
                verdict on text and image that is `Tokens.first`.
            attended: the states have passed the first layer's self-attention already, which sees no image.
        """
        x = tokens.gather(text_embeds) if tokens else text_embeds
        mask = attention_mask[:, None, None, :]
        layers = self.fusion_layers(len(images))
        in_turn = (image for layer in zip(*images, strict=True) for image in layer)
        for number, (layer, image) in enumerate(zip(layers, in_turn, strict=True)):
            last = number == len(layers) - 1
            x = layer(x, mask, image, None, tokens, wanted if last else None, attended and number == 0)
        return tokens.spread(x) if tokens and wanted is None else x

    def decode(self, input_ids: Tensor, contexts: list[KeyValue], context_mask: Tensor) -> Tensor:
        """States [R, S, D] of tokens that see themselves, those before them, and a context: the decoder of VQA.

        Padding needs no mask, for it comes last.

        Args:
            input_ids: int64 [R, S].
            contexts: of `image_key_values`, for each layer [B, ...]; row r goes with context r % B.
            context_mask: bool [B, N], True at tokens of the context.
        """
        x = self.embeddings(input_ids)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[None, None]
        for layer, context in zip(self.encoder.layer, contexts, strict=True):
            x = layer(x, mask, context, context_mask[:, None, None, :])
        return x


class PredictionTransform(nn.Module):
    """`LayerNorm(GELU(dense(x)))` ahead of the vocabulary projection."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """The MLM head; its output matrix is the word embedding table, passed in."""

    def __init__(self, vocab_size: int, width: int, eps: float) -> None:
        super().__init__()
        self.transform = PredictionTransform(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.transform(x), word_embeddings, self.bias)


class MlmHead(nn.Module):
    """Holds `predictions` (a module of its own only because BERT's parameter names say so)."""

    def __init__(self, vocab_size: int, width: int, eps: float) -> None:
        super().__init__()
        self.predictions = Predictions(vocab_size, width, eps)


class BertForMaskedLM(nn.Module):
    """`Bert` with the MLM head."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        words = bert.embeddings.word_embeddings
        self.bert = bert
        self.cls = MlmHead(words.num_embeddings, words.embedding_dim, bert.embeddings.LayerNorm.eps)
        gain = init_gain(words.embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 * gain)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def mlm_logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of token states [..., D]; give it only the masked positions."""
        return self.cls.predictions(states, self.bert.embeddings.word_embeddings.weight)
