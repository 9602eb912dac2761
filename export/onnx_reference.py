"""What the graphs of a bundle should give in any precision: its float32 graphs, in ONNX Runtime. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.verify.cases import ANSWERS, SMALL_MODEL, Case, Feed, Tokens
from tcl.data.processor import Processor
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import DEFAULT_PRECISION, Graph
from tcl.encoders.sessions import open_session
from tcl.weights.find import BUNDLE_FILE, read_json


class OnnxReference:
    """The float32 graphs of a bundle as a `Reference`.

    Args:
        bundle: has them.

    Raises:
        CheckpointError: the bundle is damaged.
    """

    name = "the float32 graphs of the bundle, in ONNX Runtime on the CPU"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.processor = Processor.load(bundle.folder)
        encoders = [bundle.graphs[name][DEFAULT_PRECISION] for name in ("image_encoder", "text_encoder")]
        files = [bundle.folder / str(entry[part]) for entry in encoders for part in ("file", "data") if part in entry]
        self.small = sum(path.stat().st_size for path in files) <= 4 * SMALL_MODEL
        self._sessions: dict[str, Any] = {}

    def case(
        self,
        graph: Graph,
        name: str,
        pixels: NDArray[np.uint8] | None,
        tokens: Tokens | None,
        draw: np.random.Generator,
    ) -> Case:
        """The inputs that a graph takes of pixels [B, 3, H, W] and tokens, and what its float32 form makes of them."""
        feed: Feed = {}
        for port in graph.inputs:
            if port.name == "pixel_values":
                assert pixels is not None
                pair = len(port.axes) == 5  # images in a second place, in another order
                feed[port.name] = np.stack([pixels, pixels[draw.permutation(len(pixels))]], 1) if pair else pixels
            elif port.name in ("image_tokens", "image_key_values"):
                feed[port.name] = self._states(port.name, pixels)
        if tokens is not None:
            feed |= {"input_ids": tokens[0], "attention_mask": tokens[1]}
        if graph.name == "vqa":
            feed |= self._answers()
        outputs = [port.name for port in graph.outputs]
        return Case(name, feed, dict(zip(outputs, self._run(graph.name, outputs, feed), strict=True)))

    def _states(self, name: str, pixels: NDArray[np.uint8] | None) -> NDArray[Any]:
        """Token states of images, or the keys and values made of them."""
        (states,) = self._run("image_tokens", ["image_tokens"], {"pixel_values": pixels})
        return states if name == "image_tokens" else self._run(name, [name], {"image_tokens": states})[0]

    def _answers(self) -> Feed:
        """Up to `ANSWERS` of the model's answers, spread over the list."""
        manifest: dict[str, Any] = read_json(self.bundle.folder / BUNDLE_FILE)
        labels = manifest["task"]["labels"]
        chosen = labels[:: max(len(labels) // ANSWERS, 1)][:ANSWERS]
        written = [f"{answer} [SEP]" for answer in chosen]
        ids, mask = self.processor.tokenizer(written, self.processor.max_length, clean=False)
        return {"answer_ids": ids, "answer_mask": mask}

    def _run(self, graph: str, outputs: Sequence[str], feed: dict[str, Any]) -> list[NDArray[Any]]:
        if graph not in self._sessions:
            path = self.bundle.graph_file(graph, DEFAULT_PRECISION)
            self._sessions[graph] = open_session(path, 1 if self.small else None)
        found: list[NDArray[Any]] = self._sessions[graph].run(outputs, feed)
        return found
