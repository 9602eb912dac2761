"""The image encoder: any timm Vision Transformer with a class token, behind two names, `tokens` and `grid_size`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.config.recipe import off_grid
from tcl.errors import ConfigError
from tcl.models.fused_linear import gelu_linear, norm_linear

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as published; of pixels scaled to [0, 1]
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def init_gain(width: int) -> float:
    """Factor on the usual initial standard deviation of 0.02, which is made for a width of 768.

    A layer of another width keeps the gain of the published one. Without it, attention in narrow models starts out too
    weak for the class token to see anything, and the contrastive loss does not move for hundreds of steps.
    """
    return (768 / width) ** 0.5


class VisionEncoder(nn.Module):
    """What TCL asks of an image encoder. `build_vision_encoder` gives a timm model these two members."""

    embed_dim: int

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to token states [B, 1 + N, D], class token first, after the final norm."""
        return self.forward_features(pixel_values)  # type: ignore[operator]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches (rows, columns); N = rows * columns, in row-major order."""
        return self.patch_embed.grid_size  # type: ignore[union-attr, return-value]


def build_vision_encoder(name: str, image_size: int | tuple[int, int], **arguments: float) -> VisionEncoder:
    """A timm ViT by name, with random weights.

    Args:
        name: timm model name, e.g. `deit_base_patch16_224`.
        image_size: pixels.
        arguments: passed on to timm, e.g. `depth=4, embed_dim=128, num_heads=4, patch_size=8`.

    Raises:
        ConfigError: no such timm model, an argument it does not take, one that is no ViT with a single class token, or
            a size that is no multiple of its patch.
    """
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*patch*")[:3]
        raise ConfigError(
            f"model.image_encoder: timm has no model {name!r}",
            hint=f"for example {', '.join(close)}" if close else "for example deit_base_patch16_224",
        )
    try:
        vit = timm.create_model(name, num_classes=0, global_pool="", img_size=image_size, **arguments)
    except (TypeError, ValueError, AssertionError, ZeroDivisionError, RuntimeError) as error:
        raise ConfigError(
            f"model.image_encoder: timm cannot build {name!r}: {error}", hint="look at model.image_encoder_args"
        ) from error
    if getattr(vit, "cls_token", None) is None or getattr(vit, "num_prefix_tokens", 0) != 1:
        raise ConfigError(
            f"model.image_encoder: {name!r} has no single class token, which TCL projects as the image feature",
            hint="use a plain ViT or DeiT, e.g. deit_base_patch16_224 or vit_small_patch16_224",
        )
    if 0 in vit.patch_embed.grid_size:
        raise ConfigError(
            f"model.image_size: {image_size} pixels are less than one patch of {name!r}", hint="make it larger"
        )
    shape = (image_size, image_size) if isinstance(image_size, int) else image_size
    if problem := off_grid(shape, vit.patch_embed.patch_size):
        raise ConfigError(f"model.{problem}")
    with torch.no_grad():
        for module in vit.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(init_gain(vit.embed_dim))
    for block in vit.blocks:
        if _is_plain(block):
            block.__class__ = _lean(type(block))  # type: ignore[arg-type]
    # Subclassing in place, rather than wrapping, keeps timm's parameter names, which are also the published ones.
    vit.__class__ = type("VisionEncoder", (VisionEncoder, type(vit)), {})
    return vit


def _is_plain(block: Any) -> bool:
    """Is it `x + attention(norm1(x))`, then `x + fc2(gelu(fc1(norm2(x))))`, with at most scales and paths dropped?"""
    from timm.layers import Mlp
    from timm.models.vision_transformer import Block

    if (
        type(block) is not Block
        or type(block.mlp) is not Mlp
        or not isinstance(block.norm2, nn.LayerNorm)
        or block.norm2.bias is None
    ):
        return False
    mlp = block.mlp
    dropout = mlp.drop1.p + mlp.drop2.p
    return type(mlp.act) is nn.GELU and mlp.act.approximate == "none" and type(mlp.norm) is nn.Identity and not dropout


@cache
def _lean(kind: type[nn.Module]) -> type[nn.Module]:
    """The same block, whose feed-forward half keeps less for the backward pass."""

    def forward(self: Any, x: Tensor, **arguments: Any) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **arguments)))
        hidden = norm_linear(x, self.norm2, self.mlp.fc1)
        return x + self.drop_path2(self.ls2(gelu_linear(hidden, self.mlp.fc2)))

    return type("LeanBlock", (kind,), {"forward": forward})


def resize_position_embeddings(
    pos_embed: Tensor, grid_size: tuple[int, int], source: tuple[int, int] | None = None
) -> Tensor:
    """Resample learned position embeddings to another grid (bicubic, no antialiasing; the class token is kept).

    Args:
        pos_embed: [1, 1 + N, D], class token first, then a grid.
        grid_size: (rows, columns) wanted.
        source: (rows, columns) of that grid; without it, it is a square.

    Returns:
        [1, 1 + rows*columns, D]
    """
    cls_token, patches = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    rows, columns = source or (side, side)
    if rows * columns != patches.shape[1]:
        raise ConfigError(
            f"position embeddings for {patches.shape[1]} patches are no square grid and cannot be resized"
        )
    if (rows, columns) == tuple(grid_size):
        return pos_embed
    grid = patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=grid_size, mode="bicubic", align_corners=False)
    return torch.cat([cls_token, grid.flatten(2).transpose(1, 2)], dim=1)
