"""What graphs a bundle holds: inputs, outputs, which axes vary, precisions, files. All of `export/` reads this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

OPSET = 20  # Gelu is native from 20; Attention (23) is still settling in the runtimes
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
DEFAULT_PRECISION = "fp32"
ONNX_RUNTIME = ("fp32", "fp16", "int8")
"""Precisions that ONNX Runtime runs; the others are for TensorRT."""

ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "bfloat16": 16,
    "float8_e4m3fn": 17,
}
"""ONNX's numbers."""

FLOAT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32", "fp8": "float16"}
"""What a graph of each precision computes in; int8 and fp8 only multiply in 8 bits."""


class Port(NamedTuple):
    """An input or output of a graph.

    Attributes:
        name: as runtimes know it.
        dtype: `uint8`, `int64`, `float32`, or `states`, see `Graph.dtype`.
        axes: a string is a dynamic axis, a number a fixed one.
    """

    name: str
    dtype: str
    axes: tuple[str | int, ...]

    @property
    def role(self) -> Literal["vectors", "states", "logits"]:
        """What an output is, which decides how it is compared with the model's: `vectors` are L2-normalised."""
        if self.name.endswith("_embeds"):
            return "vectors"
        return "logits" if self.name in ("itm_logits", "logits", "scores") else "states"


@dataclass(frozen=True)
class Graph:
    """One graph; each of its precisions is a file.

    Attributes:
        name: of the graph.
        inputs: in order.
        outputs: in order.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def file(self, precision: str = DEFAULT_PRECISION) -> str:
        """Name of its file in the bundle; float32 has the plain one."""
        return f"{self.name}.onnx" if precision == DEFAULT_PRECISION else f"{self.name}.{precision}.onnx"

    @staticmethod
    def dtype(port: Port, precision: str) -> str:
        """Element type of an input or output.

        `states` that pass from graph to graph alone are float16 where the graph computes in that, and float32 in bf16,
        which NumPy has no type for.
        """
        if port.dtype != "states":
            return port.dtype
        return "float16" if FLOAT_TYPES[precision] == "float16" else "float32"

    def describe(self, precisions: Mapping[str, Any]) -> dict[str, Any]:
        """Its entry in `bundle.json`; `precisions` has what is known of each file."""

        def ports(items: tuple[Port, ...]) -> dict[str, Any]:
            return {port.name: {"dtype": port.dtype, "shape": list(port.axes)} for port in items}

        return {"inputs": ports(self.inputs), "outputs": ports(self.outputs), "precisions": dict(precisions)}

    @classmethod
    def described(cls, name: str, entry: Mapping[str, Any]) -> Graph:
        """A graph from its entry in `bundle.json`, what `describe` gave."""

        def ports(items: Mapping[str, Any]) -> tuple[Port, ...]:
            return tuple(Port(port, str(known["dtype"]), tuple(known["shape"])) for port, known in items.items())

        return cls(name, ports(entry["inputs"]), ports(entry["outputs"]))


@dataclass(frozen=True)
class Sizes:
    """What decides the graphs of a model.

    Attributes:
        image_size: (height, width) in pixels.
        embed_dim: width E of a vector.
        image_tokens: T, the class token and one per patch.
        image_width: width of their states.
        fusion_layers: layers of the fusion encoder, or pairs of layers in a model for two images.
        heads: attention heads of a fusion layer.
        head_width: of each.
        task: what the model was fine-tuned for, if it was.
        labels: classes of its head.
    """

    image_size: tuple[int, int]
    embed_dim: int
    image_tokens: int
    image_width: int
    fusion_layers: int
    heads: int
    head_width: int
    task: str | None = None
    labels: int = 0


def graphs(sizes: Sizes, matcher: bool = True) -> tuple[Graph, ...]:
    """The graphs of a model, in the order in which they are written.

    Args:
        sizes: of the model.
        matcher: with those that re-ranking needs.
    """
    pixels = Port("pixel_values", "uint8", ("batch", 3, *sizes.image_size))
    text = tuple(Port(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    vectors = Port("image_embeds", "float32", ("batch", sizes.embed_dim))
    tokens = Port("image_tokens", "float32", ("batch", sizes.image_tokens, sizes.image_width))
    of_image = (sizes.fusion_layers, 2, sizes.heads, sizes.image_tokens, sizes.head_width)
    key_values = Port("image_key_values", "states", ("batch", *of_image))
    found = [
        Graph("image_encoder", (pixels,), (vectors,)),
        Graph("text_encoder", text, (Port("text_embeds", "float32", ("batch", sizes.embed_dim)),)),
    ]
    if matcher and sizes.fusion_layers:
        images = key_values._replace(axes=("images", *of_image))  # one for all texts, or one for each
        found += [
            Graph("image_tokens", (pixels,), (vectors, tokens)),
            Graph("image_key_values", (tokens,), (key_values,)),
            Graph("matcher", (*text, images), (Port("itm_logits", "float32", ("batch", 2)),)),
        ]
    if sizes.task is not None:
        found.append(_head(sizes, pixels, text))
    return tuple(found)


def _head(sizes: Sizes, pixels: Port, text: tuple[Port, ...]) -> Graph:
    """The graph of a fine-tuned model, named after its task."""
    assert sizes.task is not None
    if sizes.task == "vqa":
        answers = tuple(Port(name, "int64", ("answers", "answer_sequence")) for name in ("answer_ids", "answer_mask"))
        scores = Port("scores", "float32", ("batch", "answers"))
        return Graph("vqa", (pixels, *text, *answers), (scores,))
    if sizes.task in ("nlvr2", "text_assignment"):
        pixels = pixels._replace(axes=("batch", 2, 3, *sizes.image_size))
    logits = Port("logits", "float32", ("batch", sizes.labels))
    return Graph(sizes.task, (pixels, *text), (logits,))
