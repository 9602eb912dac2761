"""The graphs of a bundle: file, inputs, outputs, and which axes vary. All of `export/` reads this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPSET = 20  # Gelu is native from 20; Attention (23) is still settling in the runtimes
MAX_BATCH = 65536  # bound of the dynamic batch axis


@dataclass(frozen=True)
class Graph:
    """One graph.

    Attributes:
        name: of the graph; its file is `<name>.onnx`.
        inputs: axes of each input by name; a string is a dynamic axis, a number a fixed one.
        output: name of the output, float32 [batch, embed_dim].
        dtype: ONNX element type of the inputs.
    """

    name: str
    inputs: Mapping[str, tuple[str | int, ...]]
    output: str
    dtype: str

    @property
    def file(self) -> str:
        """Name of its file in the bundle."""
        return f"{self.name}.onnx"

    def describe(self, embed_dim: int) -> dict[str, Any]:
        """Its inputs and outputs as `bundle.json` lists them."""
        return {
            "file": self.file,
            "inputs": {name: {"dtype": self.dtype, "shape": list(axes)} for name, axes in self.inputs.items()},
            "outputs": {self.output: {"dtype": "float32", "shape": ["batch", embed_dim]}},
        }


def graphs(image_size: tuple[int, int]) -> tuple[Graph, Graph]:
    """The image graph and the text graph of a model for images of `image_size` (height, width)."""
    tokens = ("batch", "sequence")
    return (
        Graph("image_encoder", {"pixel_values": ("batch", 3, *image_size)}, "image_embeds", "uint8"),
        Graph("text_encoder", {"input_ids": tokens, "attention_mask": tokens}, "text_embeds", "int64"),
    )
