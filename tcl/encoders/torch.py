"""A model in torch, as an encoder and as a matcher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tcl.data.processor import Processor
from tcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from tcl.models.attention import Attention
    from tcl.models.tcl import TCL


class TorchEncoder:
    """A `TCL` model as an `Encoder`.

    Args:
        model: in evaluation mode; it is moved to `device`.
        device: `cpu`, `cuda`, or None for where it is.
        precision: `auto` is fp16 on a GPU, where products are then float16 and the rest float32, and fp32 on a CPU.
        compiled: by torch's compiler, at the first call; that takes a minute, and again when another batch size comes.

    Raises:
        UsageError: torch does not compute in this precision there.
    """

    lanes = 1

    def __init__(self, model: TCL, device: str | None = None, precision: str = "auto", compiled: bool = False) -> None:
        self.model = model.to(device) if device else model
        self.processor: Processor = model.processor
        self.model_hash: str = model.model_hash
        self.embed_dim: int = model.config.embed_dim
        kind = model.device.type
        known = ("fp32", "fp16", "bf16") if kind == "cuda" else ("fp32",)
        if precision not in ("auto", *known):
            raise UsageError(
                f"--precision {precision}: torch computes in {' or '.join(known)} on {kind}",
                hint=f"for {precision}, `tcl export --precision {precision}` and give the bundle by --model",
            )
        self.precision = precision if precision != "auto" else "fp16" if kind == "cuda" else "fp32"
        self.backend = f"torch-compiled-{kind}" if compiled else f"torch-{kind}"
        self._image: Callable[..., Any] = self.model.encode_image
        self._text: Callable[..., Any] = self.model.encode_text
        if compiled:
            import torch

            self._image, self._text = torch.compile(self._image), torch.compile(self._text)

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        import torch

        with torch.inference_mode(), self._autocast():
            return _array(self._image(self._moved(pixel_values)).image_feat)

    def encode_image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to vectors [B, E] and the last token states [B, T, W]."""
        import torch

        with torch.inference_mode(), self._autocast():
            image = self._image(self._moved(pixel_values))
            return _array(image.image_feat), _array(image.image_embeds)

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        import torch

        with torch.inference_mode(), self._autocast():
            return _array(self._text(self._moved(input_ids), self._moved(attention_mask)).text_feat)

    def _moved(self, values: NDArray[Any]) -> Tensor:
        import torch

        tensor = torch.as_tensor(values)
        if self.model.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.model.device, non_blocking=True)

    def _autocast(self) -> Any:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.model.device.type, dtype=dtype)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.float().cpu().numpy()
    return found


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
        logits: Tensor = self.model.itm_head(x[:, 0])
        return logits


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
    states: Tensor = attention.output(attended, x)
    return states
