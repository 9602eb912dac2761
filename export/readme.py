"""The README of a bundle: what its graphs take and give, and how to use them without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl.encoders.graphs import DEFAULT_PRECISION, ONNX_RUNTIME, Graph, graphs
from tcl.weights.untrained import lacking

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

README = "README.md"

_USE = """\
import numpy as np, onnxruntime, tokenizers
from PIL import Image
run = lambda graph, **feed: onnxruntime.InferenceSession(f"{graph}%(suffix)s.onnx").run(None, feed)[0]
picture = Image.open("%(image)s").convert("RGB").resize((%(width)d, %(height)d), Image.Resampling.BICUBIC)
pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)[None])
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
ids = np.array([tokenizer.encode("a small red circle").ids[:%(length)d]])
image = run("image_encoder", pixel_values=pixels)
text = run("text_encoder", input_ids=ids, attention_mask=np.ones_like(ids))
print(image @ text.T)
"""


def usage(model: TCL, precision: str = DEFAULT_PRECISION, image: str = "photo.jpg") -> str:
    """Ten lines of Python that compare an image with a text, in the folder of the bundle."""
    height, width = model.processor.image_size
    suffix = "" if precision == DEFAULT_PRECISION else f".{precision}"
    settings = {
        "suffix": suffix,
        "image": image,
        "height": height,
        "width": width,
        "length": model.processor.max_length,
    }
    return _USE % settings


def write_readme(folder: Path, model: TCL, files: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Write `README.md` for the graphs in `files`."""
    from export.graphs.build import sizes_of

    found = [graph for graph in graphs(sizes_of(model)) if graph.name in files]
    precisions = list(files["image_encoder"])
    parts = [
        f"# Graphs of TCL model `{model.model_hash[:12]}`\n",
        f"Precisions: {', '.join(precisions)}; float32 has the plain file names, another is `GRAPH.PRECISION.onnx`.\n",
        "\n".join(["| graph | takes | gives |", "|---|---|---|", *map(_row, found)]) + "\n",
        "Pixels are the bytes of an RGB image of this size; scaling and normalisation are in the graphs. Vectors are "
        "L2-normalised: their product is the cosine. `image_key_values` of one image go with any number of texts.\n",
    ]
    if missing := lacking(model.untrained, "vectors"):
        parts.append(f"The model has no trained {' or '.join(missing)}: its vectors mean nothing.\n")
    else:
        parts += _use(model, precisions)
    (folder / README).write_text("\n".join(parts), encoding="utf-8")


def _use(model: TCL, precisions: list[str]) -> list[str]:
    precision = next((name for name in precisions if name in ONNX_RUNTIME), None)
    parts = []
    if precision is not None:
        parts += [
            "## Use\n",
            "`pip install onnxruntime tokenizers pillow`, then in this folder:\n",
            f"```python\n{usage(model, precision)}```\n",
            "Texts are lower case and without punctuation, as in training: `clean_caption` of the `tcl` package.\n",
        ]
    backend = " --backend trt" if precision is None else ""
    return [*parts, "With that package:\n", f"    tcl embed images/ --out vecs.npy --model THIS_FOLDER{backend}\n"]


def _row(graph: Graph) -> str:
    sides = []
    for ports in (graph.inputs, graph.outputs):
        sides.append(
            "; ".join(f"`{port.name}` {_type(port.dtype)} [{', '.join(map(str, port.axes))}]" for port in ports)
        )
    return f"| {graph.name} | {sides[0]} | {sides[1]} |"


def _type(dtype: str) -> str:
    return "float32 (float16 in fp16 and fp8)" if dtype == "states" else dtype
