"""A bundle: the graphs, what feeds them, `bundle.json`, and a README.

`bundle.json` says what the graphs are and how they were verified; the README, what they take and give, and how to use
them without this package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.verify.checks import Bounds, Check
from tcl.encoders.bundle import FORMAT_VERSION, Bundle
from tcl.encoders.graphs import DEFAULT_PRECISION, ONNX_RUNTIME, OPSET, Graph, graphs
from tcl.errors import MissingExtraError, UsageError
from tcl.files.atomic import atomic_folder
from tcl.files.hashes import file_sha256
from tcl.files.locks import writing
from tcl.version import __version__
from tcl.weights.find import BUNDLE_FILE
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


@dataclass(frozen=True)
class ExportedBundle(Bundle):
    """A bundle that was just written, with the checks of its verification; none when there was no verification."""

    checks: list[Check] = field(default_factory=list)


TOOLS = ("torch", "onnx", "onnxruntime")


def build_bundle(
    model: TCL,
    target: Path,
    precisions: Sequence[str] = (DEFAULT_PRECISION,),
    *,
    matcher: bool = True,
    check: bool = True,
    images: Sequence[str | Path] = (),
    texts: Sequence[str] = (),
    static: bool = False,
    bounds: Bounds | None = None,
    progress: Callable[[str], object] = lambda step: None,
) -> ExportedBundle:
    """Export `model` to the new folder `target`.

    Files are written beside it under a temporary name. A bundle that fails its verification is kept, marked unverified.

    Args:
        model: on the CPU, in evaluation mode.
        target: must not exist.
        precisions: of the graphs; fp8 needs images and texts.
        matcher: with the graphs that re-ranking needs.
        check: verify the written files against the model.
        images: real images, for verification and the ranges of int8 and fp8.
        texts: real texts, for the same.
        static: find the ranges of int8 on these, rather than for every batch; graphs that read what was not given keep
            finding them for every batch.
        bounds: how far figures may be off.
        progress: told what is done next.

    Raises:
        UsageError: `target` exists or cannot be written, or a precision does not exist.
        MissingExtraError: a package that exports or verifies is not installed.
        TclError: the disk is full, or the model cannot be exported.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnx")
    from export.graphs.write import check_precisions, export_onnx
    from export.verify.cases import Samples, calibration
    from export.verify.onnx import verify
    from export.verify.references import TorchReference

    precisions, bounds = check_precisions(precisions), bounds or Bounds()
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another --out")
    with writing(target), atomic_folder(target) as folder:
        samples = Samples(model.processor, images, texts)
        files = export_onnx(
            model,
            folder,
            precisions,
            matcher=matcher,
            calibration=calibration(TorchReference(model), samples, static),
            progress=lambda name: progress(f"writing {name}"),
        )
        model.processor.save(folder)
        checks = (
            verify(
                folder,
                model,
                precisions,
                matcher=matcher,
                samples=samples,
                bounds=bounds,
                progress=lambda name: progress(f"verifying {name}"),
            )
            if check
            else []
        )
        verified = check and all(item.passed for item in checks)
        write_readme(folder, model, files)
        if target.exists():  # which the lock cannot prevent where it was made by something else
            raise UsageError(f"{target}: cannot be written: it has appeared meanwhile", hint="choose another --out")
        manifest = _manifest(model, folder, precisions, matcher, files, checks, bounds, verified)
        (folder / BUNDLE_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    hashes, untrained = manifest["files"], tuple(model.untrained)
    return ExportedBundle(
        target,
        model.model_hash,
        model.config.embed_dim,
        precisions,
        verified,
        files,
        hashes,
        untrained,
        checks=checks,
    )


def _manifest(
    model: TCL,
    folder: Path,
    precisions: Sequence[str],
    matcher: bool,
    files: Mapping[str, Mapping[str, Mapping[str, Any]]],
    checks: Sequence[Check],
    bounds: Bounds,
    verified: bool,
) -> dict[str, Any]:
    from export.graphs.build import sizes_of

    sizes = sizes_of(model)
    described = {}
    for graph in graphs(sizes, matcher):
        entries = {}
        for precision, entry in files[graph.name].items():
            own = [check for check in checks if (check.graph, check.precision) == (graph.name, precision)]
            entries[precision] = {**entry, "verified": bool(own) and all(check.passed for check in own)}
        described[graph.name] = graph.describe(entries)
    head = getattr(model, "head", None)
    return {
        "format_version": FORMAT_VERSION,
        "model_hash": model.model_hash,
        "embed_dim": sizes.embed_dim,
        "precisions": list(precisions),
        "opset": OPSET,
        "graphs": described,
        "task": {"name": head.task, "labels": head.labels} if head is not None else None,
        "untrained": list(model.untrained),
        "preprocessing": model.processor.settings(),
        "verified": verified,
        "verification": {**bounds.to_json(), "checks": [item.to_json() for item in checks]} if checks else None,
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        "tools": {"tcl": __version__} | {name: import_module(name).__version__ for name in TOOLS},
    }
