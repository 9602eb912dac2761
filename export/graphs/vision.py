"""The image encoder as a graph: the pixels of an image to the states of its tokens.

A plain Vision Transformer is written down layer by layer; any other is traced into the graph by torch's own exporter.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from export.graphs.network import Network
from tcl.encoders.graphs import OPSET
from tcl.errors import MissingExtraError, TclError, reason_of
from tcl.machine.quiet import quiet

if TYPE_CHECKING:
    from tcl.models.tcl import TCL
    from tcl.models.vision import VisionEncoder

EXAMPLE_BATCH = 2  # never 1, which tracing would take for a constant
PREFIX = "visual_encoder/"


def trace(net: Network, encoder: VisionEncoder, x: str, image_size: tuple[int, int]) -> str:
    """Token states [B, T, D] of normalised pixels [B, 3, H, W] `x`, by nodes that torch's exporter finds.

    Raises:
        MissingExtraError: the exporter's packages are not installed.
        TclError: it cannot export this encoder.
    """
    import torch

    module = _tokens_of(copy.deepcopy(encoder)).eval().to(getattr(torch, net.dtype))
    pixels = torch.zeros(EXAMPLE_BATCH, 3, *image_size, dtype=getattr(torch, net.dtype))
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                module,
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                external_data=False,
                verbose=False,
            )
            assert program is not None  # it writes no file itself
            traced: Any = program.model_proto
    except ImportError as error:
        raise MissingExtraError("onnxscript", "onnx") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise TclError(
            f"image encoder: torch cannot export this model: {reason_of(error)}", hint="see --debug"
        ) from error
    opsets = {entry.domain: entry.version for entry in traced.opset_import}
    if opsets != {"": OPSET}:
        raise TclError(f"image encoder: the exporter wrote operator sets {opsets} instead of {OPSET}")
    return _inline(net, traced.graph, x)


def _tokens_of(encoder: VisionEncoder) -> Any:
    from torch import Tensor, nn

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.encoder.tokens(pixel_values)

    return Tokens()


def _inline(net: Network, graph: Any, x: str) -> str:
    """Add the nodes and weights of `graph` under names of their own; without traces, which hold local paths."""
    names = {graph.input[0].name: x}
    for weight in graph.initializer:
        names[weight.name] = PREFIX + weight.name
        weight.name = PREFIX + weight.name
        del weight.metadata_props[:]
        weight.doc_string = ""
        net.weights[weight.name] = weight
    for node in graph.node:
        node.input[:] = [names[name] if name else "" for name in node.input]
        for place, name in enumerate(node.output):
            names[name] = PREFIX + name if name else ""
            node.output[place] = names[name]
        node.name = PREFIX + node.name
        del node.metadata_props[:]
        node.doc_string = ""
        net.nodes.append(node)
    return names[graph.output[0].name]


def normalised_pixels(net: Network, model: TCL, pixels: str) -> str:
    """uint8 [B, 3, H, W] to what the encoder takes; float32 up to the last step, for half precision is too coarse."""
    with net.float32():
        x = net.op("Cast", pixels, to=1)
        x = net.op("Sub", x, net.weight("pixel_mean", model.pixel_mean))
        x = net.op("Div", x, net.weight("pixel_std", model.pixel_std))
    return net.cast(x, net.dtype, "float32")


def image_tokens(net: Network, model: TCL, pixels: str, only_first: bool = False) -> str:
    """Token states [B, T, D] of uint8 pixels [B, 3, H, W].

    Args:
        only_first: [B, 1, D], the class token's alone; the last block then computes no others.
    """
    encoder = model.visual_encoder
    x = normalised_pixels(net, model, pixels)
    if not is_plain(encoder):
        states = trace(net, encoder, x, model.processor.image_size)
        return net.first(states) if only_first else states
    x = _embed(net, encoder, x)
    x = net.norm(encoder.norm_pre, x)  # type: ignore[arg-type]
    blocks = list(encoder.blocks)  # type: ignore[arg-type]
    for block in blocks:
        x = _block(net, block, x, only_first and block is blocks[-1])
    if only_first and not blocks:
        x = net.first(x)
    return net.norm(encoder.norm, x)  # type: ignore[arg-type]


def is_plain(encoder: VisionEncoder) -> bool:
    """Can it be written down layer by layer? Other Vision Transformers are traced."""
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    patches: Any = encoder.patch_embed
    kernel = getattr(getattr(patches, "proj", None), "kernel_size", None)
    return (
        getattr(type(encoder), "forward_features", None) is VisionTransformer.forward_features
        and type(encoder)._pos_embed is VisionTransformer._pos_embed  # type: ignore[attr-defined]
        and encoder.reg_token is None
        and encoder.pos_embed is not None
        and not encoder.no_embed_class
        and not encoder.dynamic_img_size
        and isinstance(patches.norm, nn.Identity)
        and kernel == patches.proj.stride == patches.patch_size
        and all(side % step == 0 for side, step in zip(patches.img_size, patches.patch_size, strict=True))
        and _plain_norms(encoder.norm_pre, encoder.norm)
        and all(_is_plain_block(block) for block in encoder.blocks)
    )


def _is_plain_block(block: Any) -> bool:
    from timm.layers import LayerScale, Mlp
    from timm.models.vision_transformer import Attention, Block
    from torch import nn

    if not isinstance(block, Block) or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    attention, mlp = block.attn, block.mlp
    return (
        all(isinstance(scale, nn.Identity | LayerScale) for scale in (block.ls1, block.ls2))
        and isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
        and getattr(attention, "gate", None) is None
        and _plain_norms(block.norm1, block.norm2, attention.q_norm, attention.k_norm)
        and type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
        and isinstance(mlp.norm, nn.Identity)
        and type(mlp.fc1) is nn.Linear
    )


def _plain_norms(*norms: Any) -> bool:
    from torch import nn

    return all(
        isinstance(norm, nn.Identity) or (isinstance(norm, nn.LayerNorm) and norm.bias is not None) for norm in norms
    )


def _embed(net: Network, encoder: Any, x: str) -> str:
    """Patches, each multiplied with the weights, which is what a convolution with steps of a patch does."""
    patches = encoder.patch_embed
    name = net.names[patches.proj]
    (rows, columns), (height, width) = patches.grid_size, patches.patch_size
    x = net.op("Reshape", x, net.shape(0, 3, rows, height, columns, width))
    x = net.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
    x = net.op("Reshape", x, net.shape(0, rows * columns, 3 * height * width))
    x = net.op("MatMul", x, net.weight(f"{name}.weight", patches.proj.weight.flatten(1).T), name=name)
    if patches.proj.bias is not None:
        x = net.op("Add", x, net.weight(f"{name}.bias", patches.proj.bias))
    batch = net.op("Shape", x, start=0, end=1)
    sizes = net.op("Concat", batch, net.integers(1, encoder.embed_dim), axis=0)
    cls_token = net.op("Expand", net.weight(f"{net.names[encoder]}.cls_token", encoder.cls_token), sizes)
    x = net.op("Concat", cls_token, x, axis=1)
    return net.op("Add", x, net.weight(f"{net.names[encoder]}.pos_embed", encoder.pos_embed))


def _block(net: Network, block: Any, x: str, only_first: bool) -> str:
    attention = block.attn
    heads, width = attention.num_heads, attention.head_dim
    normed = net.norm(block.norm1, x)
    qkv = net.linear(attention.qkv, normed)
    query, key, value = net.ops("Split", qkv, count=3, axis=-1, num_outputs=3)
    if only_first:
        x, query = net.first(x), net.first(query)
    query, key = _normed_heads(net, attention.q_norm, query, heads), _normed_heads(net, attention.k_norm, key, heads)
    key = net.op("Transpose", key, perm=[0, 1, 3, 2])
    attended = net.attend(query, key, net.split_heads(value, heads), width)
    x = net.op("Add", x, _scaled(net, block.ls1, net.linear(attention.proj, attended)))
    hidden = net.op("Gelu", net.linear(block.mlp.fc1, net.norm(block.norm2, x)))
    return net.op("Add", x, _scaled(net, block.ls2, net.linear(block.mlp.fc2, hidden)))


def _normed_heads(net: Network, norm: Any, x: str, heads: int) -> str:
    return net.norm(norm, net.split_heads(x, heads))


def _scaled(net: Network, scale: Any, x: str) -> str:
    gamma = getattr(scale, "gamma", None)
    return x if gamma is None else net.op("Mul", x, net.weight(f"{net.names[scale]}.gamma", gamma))
