"""Do the written graphs compute what the model computes? Names, then axes, then shapes, then values, on fresh sessions.

Shapes and values are checked far from the traced ones: batches of 1, 2 and 7, every text length, rows with and without
padding. What stands in the padding is random, so a graph that ignores its mask is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.formats import Graph, graphs
from export.runtime import TorchEncoder, open_session

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

BOUND = 1e-5  # largest |difference| of a vector's entry, float32
BATCHES = (1, 2, 7)
ORT_TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float32": "tensor(float)"}

Feed = dict[str, NDArray[Any]]
Case = tuple[str, Feed]  # "batch 2, length 5, padded" and the inputs


@dataclass
class Check:
    """One line of a verification.

    Attributes:
        graph: name of the graph.
        subject: `names`, `axes`, `shapes` or `values`.
        passed: whether it is as it should be.
        detail: what was seen; of a failure, where and what.
        cases: runs that were compared.
        max_abs_diff: largest |graph - model| over all entries and cases; None unless `values`.
        min_cosine: smallest cosine between a row of the graph and of the model; None unless `values`.
    """

    graph: str
    subject: str
    passed: bool
    detail: str = ""
    cases: int = 0
    max_abs_diff: float | None = None
    min_cosine: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def verify(folder: Path, model: TCL, images: Sequence[str | Path] = (), bound: float = BOUND) -> list[Check]:
    """Compare the graphs in `folder` with the model they were exported from.

    Args:
        folder: holds the `.onnx` files.
        model: on the CPU, in evaluation mode.
        images: real images, compared beside random pixels.
        bound: largest |difference| allowed.

    Returns:
        For each graph its checks, up to the first that makes the next ones pointless.
    """
    encoder = TorchEncoder(model)
    image, text = graphs(model.processor.image_size)
    reference: dict[str, Callable[..., NDArray[np.float32]]] = {
        image.name: encoder.encode_image,
        text.name: encoder.encode_text,
    }
    cases = {image.name: _image_cases(model, images), text.name: _text_cases(model)}
    checks: list[Check] = []
    for graph in (image, text):
        checks += _verify_graph(
            folder / graph.file, graph, encoder.embed_dim, reference[graph.name], cases[graph.name], bound
        )
    return checks


def _verify_graph(
    path: Path,
    graph: Graph,
    embed_dim: int,
    reference: Callable[..., NDArray[np.float32]],
    cases: Iterator[Case],
    bound: float,
) -> list[Check]:
    try:
        session = open_session(path)
    except Exception as error:  # ONNX Runtime raises many kinds
        return [Check(graph.name, "names", False, f"cannot be opened: {_one_line(error)}")]
    checks = [_check_names(session, graph)]
    if checks[0].passed:
        checks.append(_check_axes(session, graph, embed_dim))
        checks += _check_values(session, graph, embed_dim, reference, cases, bound)
    return checks


def _check_names(session: Any, graph: Graph) -> Check:
    found = ([node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()])
    wanted = (list(graph.inputs), [graph.output])
    detail = f"{', '.join(found[0])} -> {', '.join(found[1])}"
    if found != wanted:
        detail += f", not {', '.join(wanted[0])} -> {', '.join(wanted[1])}"
    return Check(graph.name, "names", found == wanted, detail)


def _check_axes(session: Any, graph: Graph, embed_dim: int) -> Check:
    nodes = [*session.get_inputs(), *session.get_outputs()]
    found = {node.name: (node.type, tuple(node.shape)) for node in nodes}
    wanted = {name: (ORT_TYPES[graph.dtype], tuple(axes)) for name, axes in graph.inputs.items()}
    wanted[graph.output] = (ORT_TYPES["float32"], ("batch", embed_dim))
    wrong = [f"{name}: {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    right = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, (_, shape) in found.items())
    return Check(graph.name, "axes", not wrong, "; ".join(wrong) or right)


def _check_values(
    session: Any,
    graph: Graph,
    embed_dim: int,
    reference: Callable[..., NDArray[np.float32]],
    cases: Iterator[Case],
    bound: float,
) -> list[Check]:
    shapes = Check(graph.name, "shapes", True)
    values = Check(graph.name, "values", True, max_abs_diff=0.0, min_cosine=1.0)
    for name, feed in cases:
        expected = reference(*feed.values())
        try:
            (actual,) = session.run([graph.output], feed)
        except Exception as error:
            shapes.passed, shapes.detail = False, f"{name}: does not run: {_one_line(error)}"
            break
        shapes.cases += 1
        if actual.shape != (len(expected), embed_dim):
            shapes.passed, shapes.detail = False, f"{name}: {actual.shape}, not {(len(expected), embed_dim)}"
            break
        _compare(values, name, actual, expected)
    shapes.detail = shapes.detail or f"[batch, {embed_dim}] in {shapes.cases} cases"
    if not shapes.passed:
        return [shapes]
    difference = values.max_abs_diff
    values.passed = difference is not None and difference <= bound  # a NaN is not
    values.detail = f"max |difference| {difference:.1e} (bound {bound:.0e}) at {values.detail or 'every case'}"
    return [shapes, values]


def _compare(check: Check, name: str, actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Add one case to the figures of a `values` check; its detail names the worst case."""
    difference = float(np.abs(actual - expected).max())
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((actual * expected).sum(axis=1) / np.maximum(norms, 1e-12)).min())
    assert check.max_abs_diff is not None and check.min_cosine is not None
    check.cases += 1
    if not difference <= check.max_abs_diff:  # also when it is NaN, which then stays
        check.max_abs_diff, check.detail = difference, name
    if not cosine >= check.min_cosine:
        check.min_cosine = cosine


def _image_cases(model: TCL, images: Sequence[str | Path]) -> Iterator[Case]:
    draw = np.random.default_rng(0)
    for batch in BATCHES:
        pixels = draw.integers(0, 256, (batch, 3, *model.processor.image_size), dtype=np.uint8)
        yield f"batch {batch}, random pixels", {"pixel_values": pixels}
    for image in images:
        yield f"image {image}", {"pixel_values": model.processor.images([image])}


def _text_cases(model: TCL) -> Iterator[Case]:
    draw = np.random.default_rng(0)
    vocab_size = model.processor.tokenizer.vocab_size
    for length in range(1, model.processor.max_length + 1):
        for batch in BATCHES:
            ids = draw.integers(0, vocab_size, (batch, length), dtype=np.int64)
            yield f"batch {batch}, length {length}", {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            lengths = draw.integers(1, length + 1, batch)
            mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
            yield f"batch {batch}, length {length}, padded", {"input_ids": ids, "attention_mask": mask}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
