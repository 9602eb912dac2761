"""Each graph of a bundle, put together from the modules of a model.

`tcl.encoders.graphs` says what goes in and comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.graphs.network import Network
from export.graphs.text import context, decoded, fused, fused_cls, image_contexts, key_mask, key_values, text_tokens
from export.graphs.vision import image_tokens
from tcl.encoders.graphs import ELEMENT_TYPES, FLOAT_TYPES, Graph, Sizes

if TYPE_CHECKING:
    from torch import nn

    from tcl.models.tcl import TCL


def sizes_of(model: TCL) -> Sizes:
    """What decides the graphs of `model`."""
    from tcl.models.task_model import TaskModel

    text, head = model.config.text_encoder_args, model.head if isinstance(model, TaskModel) else None
    rows, columns = model.visual_encoder.grid_size
    return Sizes(
        image_size=model.processor.image_size,
        embed_dim=model.config.embed_dim,
        image_tokens=1 + rows * columns,
        image_width=model.visual_encoder.embed_dim,
        fusion_layers=len(model.text_encoder.bert.fusion_layers()),
        heads=text.num_attention_heads,
        head_width=text.hidden_size // text.num_attention_heads,
        task=head.task if head else None,
        labels=len(head.labels) if head else 0,
    )


def build(model: TCL, graph: Graph, precision: str) -> Network:
    """The nodes and weights of a graph.

    Args:
        model: in evaluation mode.
        graph: of `graphs(sizes_of(model))`.
        precision: `fp32`, `fp16` or `bf16`.
    """
    net = Network(model, FLOAT_TYPES[precision])
    made = _BUILDERS.get(graph.name, _classifier)
    made(net, model, graph, precision)
    return net


def _image_encoder(net: Network, model: TCL, graph: Graph, precision: str) -> None:
    _project(net, model.vision_proj, image_tokens(net, model, "pixel_values", only_first=True), "image_embeds")


def _text_encoder(net: Network, model: TCL, graph: Graph, precision: str) -> None:
    mask = key_mask(net, "attention_mask")
    states = text_tokens(net, model.text_encoder.bert, "input_ids", mask, only_first=True)
    _project(net, model.text_proj, states, "text_embeds")


def _image_tokens(net: Network, model: TCL, graph: Graph, precision: str) -> None:
    states = image_tokens(net, model, "pixel_values")
    _project(net, model.vision_proj, net.first(states), "image_embeds")
    net.cast(states, "float32", result="image_tokens")


def _image_key_values(net: Network, model: TCL, graph: Graph, precision: str) -> None:
    states = net.cast("image_tokens", net.dtype, "float32")
    parts = [
        net.op("Unsqueeze", part, net.integers(1))
        for layer in model.text_encoder.bert.fusion_layers()
        for part in key_values(net, layer.crossattention, states)  # type: ignore[arg-type]
    ]
    output = graph.outputs[0]
    stacked = net.op("Reshape", net.op("Concat", *parts, axis=1), net.shape(0, *map(int, output.axes[1:])))
    net.cast(stacked, graph.dtype(output, precision), result=output.name)


def _matcher(net: Network, model: TCL, graph: Graph, precision: str) -> None:
    bert = model.text_encoder.bert
    images = graph.inputs[-1]
    stacked = net.cast(images.name, net.dtype, graph.dtype(images, precision))
    contexts = []
    for number in range(int(images.axes[1])):
        layer = net.pick(stacked, number, 1)  # [B, 2, H, N, Dh]
        contexts.append(context(net, net.pick(layer, 0, 1), net.pick(layer, 1, 1)))
    mask = key_mask(net, "attention_mask")
    states = fused_cls(net, bert, text_tokens(net, bert, "input_ids", mask), mask, contexts)
    _head(net, states, [model.itm_head], "itm_logits")


def _classifier(net: Network, model: Any, graph: Graph, precision: str) -> None:
    """The heads of one image and of two."""
    bert, pixels = model.text_encoder.bert, graph.inputs[0]
    mask = key_mask(net, "attention_mask")
    text = text_tokens(net, bert, "input_ids", mask)
    if len(pixels.axes) == 4:
        images = [image_contexts(net, bert, image_tokens(net, model, pixels.name))]
    else:
        # Cast before the shape changes: TensorRT takes bytes as inputs, and does nothing with them but cast them.
        values = net.op("Cast", pixels.name, to=ELEMENT_TYPES["float32"])
        flat = net.op("Reshape", values, net.shape(-1, *map(int, pixels.axes[2:])))
        states = net.cast(image_tokens(net, model, flat), net.dtype)
        tokens, width = (
            1 + model.visual_encoder.grid_size[0] * model.visual_encoder.grid_size[1],
            model.visual_encoder.embed_dim,
        )
        pairs = net.op("Reshape", states, net.shape(-1, 2, tokens, width))
        images = [image_contexts(net, bert, net.pick(pairs, place, 1)) for place in (0, 1)]
    layers = [model.ta_head] if graph.name == "text_assignment" else list(model.cls_head)
    _head(net, fused_cls(net, bert, text, mask, *images), layers, "logits")


def _vqa(net: Network, model: Any, graph: Graph, precision: str) -> None:
    """Scores [B, A] of answers: log-likelihoods, that of the first token counted twice, as published."""
    bert, decoder = model.text_encoder.bert, model.text_decoder
    mask = key_mask(net, "attention_mask")
    images = image_contexts(net, bert, image_tokens(net, model, "pixel_values"))
    asked = fused(net, bert, text_tokens(net, bert, "input_ids", mask), mask, images)
    read, targets = _shifted(net, "answer_ids")
    states = decoded(net, decoder.bert, read, image_contexts(net, decoder.bert, asked), mask)
    transform = decoder.cls.predictions.transform
    states = net.norm(transform.LayerNorm, net.op("Gelu", net.linear(transform.dense, states)))
    words = decoder.bert.embeddings.word_embeddings
    table = net.weight(f"{net.names[words]}.weight", words.weight)
    flat = net.op("Reshape", states, net.shape(-1, words.embedding_dim))
    bias = net.weight("text_decoder.cls.predictions.bias", decoder.cls.predictions.bias)
    logits = net.cast(net.op("Gemm", flat, table, bias, transB=1), "float32")
    with net.float32():
        sizes = net.op("Shape", states, start=0, end=3)  # [A, B, T - 1]
        logits = net.op("Reshape", logits, net.op("Concat", sizes, net.integers(-1), axis=0))
        wanted = net.op("Unsqueeze", targets, net.integers(1, 3))
        wanted = net.op("Expand", wanted, net.op("Concat", sizes, net.integers(1), axis=0))
        likelihood = net.op("GatherElements", net.op("LogSoftmax", logits, axis=-1), wanted, axis=-1)
        likelihood = net.op("Squeeze", likelihood, net.integers(-1))
        counted = net.op("Unsqueeze", net.op("Cast", _shifted(net, "answer_mask")[1], to=1), net.integers(1))
        total = net.op("ReduceSum", net.op("Mul", likelihood, counted), net.integers(-1), keepdims=0)
        scores = net.op("Add", total, net.pick(likelihood, 0, 2))
        net.op("Transpose", scores, perm=[1, 0], result="scores")


def _shifted(net: Network, x: str) -> tuple[str, str]:
    """All but the last of each row, and all but the first."""
    last, first, axis = net.integers(-1), net.integers(0), net.integers(1)
    return net.op("Slice", x, first, last, axis), net.op("Slice", x, axis, net.integers(2**31 - 1), axis)


def _project(net: Network, projection: nn.Module, state: str, result: str) -> None:
    """State [B, 1, D] to an L2-normalised vector [B, E]; float32."""
    state = net.cast(net.op("Squeeze", state, net.integers(1)), "float32")
    with net.float32():
        net.normalise(net.linear(projection, state), result)


def _head(net: Network, state: str, layers: list[nn.Module], result: str) -> None:
    """State [R, 1, D] to logits [R, K]; float32."""
    from torch import nn

    x = net.cast(net.op("Squeeze", state, net.integers(1)), "float32")
    with net.float32():
        for layer in layers:
            x = net.op("Relu", x) if isinstance(layer, nn.ReLU) else net.linear(layer, x)
        net.op("Identity", x, result=result)


_BUILDERS = {
    "image_encoder": _image_encoder,
    "text_encoder": _text_encoder,
    "image_tokens": _image_tokens,
    "image_key_values": _image_key_values,
    "matcher": _matcher,
    "vqa": _vqa,
}
