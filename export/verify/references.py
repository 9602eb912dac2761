"""What graphs and engines should give: what the model gives in torch, or its float32 graphs in ONNX Runtime.

The graphs stand in for the model, in any precision, where there is only a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.verify.cases import ANSWERS, SMALL_MODEL, Case, Feed, Tokens
from tcl.data.processor import Processor
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import DEFAULT_PRECISION, Graph
from tcl.encoders.sessions import open_session
from tcl.weights.find import BUNDLE_FILE, read_json

if TYPE_CHECKING:
    from tcl.models.tcl import TCL


class TorchReference:
    """A model as a `Reference`.

    Args:
        model: on the CPU, in evaluation mode.
    """

    name = "the model, in torch in float32"

    def __init__(self, model: TCL) -> None:
        self.model = model
        self.processor = model.processor
        self.small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL_MODEL

    def case(
        self,
        graph: Graph,
        name: str,
        pixels: NDArray[np.uint8] | None,
        tokens: Tokens | None,
        draw: np.random.Generator,
    ) -> Case:
        """The inputs that a graph takes of pixels [B, 3, H, W] and tokens, and what the model makes of them."""
        import torch

        model = self.model
        feed: Feed = {}
        if tokens is not None:
            feed |= {"input_ids": tokens[0], "attention_mask": tokens[1]}
        with torch.inference_mode():
            if graph.name == "text_encoder":
                vectors = model.encode_text(feed["input_ids"], feed["attention_mask"]).text_feat
                return Case(name, feed, {"text_embeds": vectors.numpy()})
            assert pixels is not None
            if graph.name in ("image_encoder", "image_tokens", "image_key_values", "matcher"):
                return _pretrained(model, graph.name, name, feed, pixels)
            return _head(model, graph, name, feed, pixels, draw)


def _pretrained(model: TCL, graph: str, name: str, feed: Feed, pixels: NDArray[np.uint8]) -> Case:
    import torch

    from tcl.models.tcl import ImageOutput

    image = model.encode_image(pixels)
    vectors, tokens = image.image_feat.numpy(), image.image_embeds.numpy()
    if graph == "image_encoder":
        return Case(name, {"pixel_values": pixels}, {"image_embeds": vectors})
    if graph == "image_tokens":
        return Case(name, {"pixel_values": pixels}, {"image_embeds": vectors, "image_tokens": tokens})
    layers = model.image_key_values(image.image_embeds)
    stacked = torch.stack([torch.stack(layer, dim=1) for layer in layers], dim=1).numpy()
    if graph == "image_key_values":
        return Case(name, {"image_tokens": tokens}, {"image_key_values": stacked})
    logits = model.match(
        ImageOutput(image.image_embeds, image.image_feat), model.encode_text(feed["input_ids"], feed["attention_mask"])
    )
    return Case(name, feed | {"image_key_values": stacked}, {"itm_logits": logits.numpy()})


def _head(
    model: Any, graph: Graph, name: str, feed: Feed, pixels: NDArray[np.uint8], draw: np.random.Generator
) -> Case:
    import torch

    rows = len(pixels)
    ids, mask = torch.from_numpy(feed["input_ids"]), torch.from_numpy(feed["attention_mask"]).bool()
    if graph.name in ("nlvr2", "text_assignment"):
        second = pixels[draw.permutation(rows)]  # the images of a row in the second place
        images = model.image_key_values(model.encode_image(np.concatenate([pixels, second])).image_embeds)
        feed = {"pixel_values": np.stack([pixels, second], axis=1)} | feed
    else:
        images = model.image_key_values(model.encode_image(pixels).image_embeds)
        feed = {"pixel_values": pixels} | feed
    if graph.name == "text_assignment":
        places = torch.stack([torch.arange(rows), torch.arange(rows, 2 * rows)], dim=1)
        return Case(name, feed, {"logits": model.assign(images, ids, mask, places).numpy()})
    if graph.name != "vqa":
        return Case(name, feed, {"logits": model.classify(images, ids, mask).numpy()})
    answers = _answers(model)
    feed |= {"answer_ids": answers[0].numpy(), "answer_mask": answers[1].numpy().astype(np.int64)}
    return Case(name, feed, {"scores": _scores(model, model.ask(images, ids, mask), *answers)})


def _answers(model: Any) -> Any:
    """Up to `ANSWERS` of the model's answers, spread over the list."""
    from tcl.evaluation.vqa import tokenize_answers

    labels = model.head.labels
    chosen = labels[:: max(len(labels) // ANSWERS, 1)][:ANSWERS]
    return tokenize_answers(chosen, model.processor.tokenizer, model.max_positions)


def _scores(model: Any, question: Any, answer_ids: Any, answer_mask: Any) -> NDArray[np.float32]:
    """What `rank_answers` ranks by, [B, A], for every answer: its log-likelihood, the first token's counted twice."""
    import torch

    size, count = len(question.mask), len(answer_ids)
    rows = torch.arange(count).repeat_interleave(size)  # row a * B + b answers question b
    states = model.decode(answer_ids[rows, :-1], question)
    targets = answer_ids[rows, 1:]
    likelihood = model.log_likelihood(states.flatten(0, 1), targets.flatten()).view(targets.shape)
    scores = (likelihood * answer_mask[rows, 1:]).sum(dim=1) + likelihood[:, 0]
    found: NDArray[np.float32] = scores.view(count, size).T.numpy()
    return found


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
