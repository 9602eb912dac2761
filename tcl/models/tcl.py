"""The TCL model: two encoders, a fusion encoder over both, and their heads. No loss, no teacher, no sampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.attention import KeyValue, Tokens
from tcl.models.bert import Bert, BertForMaskedLM
from tcl.models.vision import PIXEL_MEAN, PIXEL_STD, VisionEncoder, build_vision_encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tcl.config.recipe import ModelConfig
    from tcl.data.processor import Processor


class ImageOutput(NamedTuple):
    """Images, encoded. `image_embeds` [B, 1 + N, Dv] token states; `image_feat` [B, E] projected, L2-normalised."""

    image_embeds: Tensor
    image_feat: Tensor


class TextOutput(NamedTuple):
    """Texts, encoded. `text_embeds` [R, S, D]; `text_feat` [R, E] projected, L2-normalised; `attention_mask` [R, S]."""

    text_embeds: Tensor
    text_feat: Tensor
    attention_mask: Tensor


class TCL(nn.Module):
    """Image encoder, text encoder, fusion encoder and heads (section 3.1 of the paper, figure 2).

    Attributes:
        config: the sizes it was built from.
        processor: turns files and strings into this model's inputs; set by `from_pretrained` and by training.
        model_hash: identifies weights, sizes, vocabulary and preprocessing; set by loading and saving.
        untrained: parts that hold random numbers, see `tcl.weights.untrained`.
    """

    config: ModelConfig
    processor: Processor
    model_hash: str
    untrained: tuple[str, ...] = ()
    from_pretrained: ClassVar[Callable[[str | Path], TCL]]  # set by `tcl.weights.load`: models know no files
    save_pretrained: Callable[[str | Path], None]
    pixel_mean: Tensor  # [3, 1, 1]
    pixel_std: Tensor  # [3, 1, 1]

    def __init__(
        self, visual_encoder: VisionEncoder, text_encoder: BertForMaskedLM, embed_dim: int, temperature: float = 0.07
    ) -> None:
        super().__init__()
        text_width = text_encoder.bert.embeddings.word_embeddings.embedding_dim
        self.visual_encoder = visual_encoder
        self.text_encoder = text_encoder
        self.vision_proj = nn.Linear(visual_encoder.embed_dim, embed_dim)
        self.text_proj = nn.Linear(text_width, embed_dim)
        self.itm_head = nn.Linear(text_width, 2)
        self.temp = nn.Parameter(torch.tensor(temperature))  # the published name of the temperature
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1) * 255, persistent=False)

    @classmethod
    def from_config(cls, config: ModelConfig, vocab_size: int, temperature: float = 0.07) -> TCL:
        """A model with random weights of the sizes that `config` names."""
        visual_encoder = build_vision_encoder(config.image_encoder, config.image_shape, **config.image_encoder_args)
        text = config.text_encoder_args
        bert = Bert(
            vocab_size=vocab_size,
            width=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            intermediate_width=text.intermediate_size,
            max_positions=text.max_position_embeddings,
            fusion_layer=config.fusion_layer,
            image_width=visual_encoder.embed_dim,
            dropout=text.dropout,
            eps=text.layer_norm_eps,
        )
        model = cls(visual_encoder, BertForMaskedLM(bert), config.embed_dim, temperature)
        model.config = config
        return model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    def normalise_pixels(self, pixel_values: Tensor) -> Tensor:
        """uint8 pixels [B, 3, H, W] to the encoder's input, `(x / 255 - mean) / std` with CLIP's constants."""
        return (pixel_values - self.pixel_mean) / self.pixel_std

    def project_image(self, image_embeds: Tensor) -> Tensor:
        """Token states [..., Dv] to L2-normalised features [..., E]."""
        return F.normalize(self.vision_proj(image_embeds).float(), dim=-1)

    def project_text(self, text_embeds: Tensor) -> Tensor:
        """Token states [..., D] to L2-normalised features [..., E]."""
        return F.normalize(self.text_proj(text_embeds).float(), dim=-1)

    def encode_image(self, pixel_values: Tensor | NDArray) -> ImageOutput:
        """Encode images [B, 3, H, W]: uint8 pixels, or floats that are normalised already."""
        pixels = torch.as_tensor(pixel_values, device=self.device)
        if pixels.dtype == torch.uint8:
            pixels = self.normalise_pixels(pixels)
        image_embeds = self.visual_encoder.tokens(pixels)
        return ImageOutput(image_embeds, self.project_image(image_embeds[:, 0]))

    def encode_text(
        self,
        input_ids: Tensor | NDArray,
        attention_mask: Tensor | NDArray,
        tokens: Tokens | None = None,
        sparse_gradient: bool = False,
    ) -> TextOutput:
        """Encode token ids [R, S] under a mask [R, S] that is non-zero at tokens; more in `Bert.encode`."""
        input_ids = torch.as_tensor(input_ids, device=self.device)
        mask = torch.as_tensor(attention_mask, device=self.device).bool()
        text_embeds = self.text_encoder.bert.encode(input_ids, mask, tokens, sparse_gradient)
        return TextOutput(text_embeds, self.project_text(text_embeds[:, 0]), mask)

    def image_key_values(self, image_embeds: Tensor) -> list[KeyValue]:
        """What the fusion encoder needs of the images [B, 1 + N, Dv]; compute it once, use it for every caption."""
        return self.text_encoder.bert.image_key_values(image_embeds)

    def fuse(
        self,
        text_embeds: Tensor,
        attention_mask: Tensor,
        images: list[KeyValue],
        tokens: Tokens | None = None,
        wanted: Tokens | None = None,
    ) -> Tensor:
        """Fused states of texts [R, S, D] with B images; R is a multiple of B, row r meets image r % B.

        Returns:
            [R, S, D], or [T, D] of the `wanted` tokens; see `Bert.fuse`.
        """
        return self.text_encoder.bert.fuse(text_embeds, attention_mask, images, tokens=tokens, wanted=wanted)

    def match(self, image: ImageOutput, text: TextOutput) -> Tensor:
        """Do image and text belong together?

        Args:
            image: B images.
            text: R texts, R a multiple of B; text r is compared with image r % B.

        Returns:
            ITM logits [R, 2]: no match, match. Rank by `[:, 1]`; `.softmax(-1)[:, 1]` is the probability.
        """
        mask = text.attention_mask
        images = self.image_key_values(image.image_embeds)
        return self.itm_head(self.fuse(text.text_embeds, mask, images, wanted=Tokens.first(mask)))
