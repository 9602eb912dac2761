"""What graphs are compared on, and what the model says about it: inputs far from any that were used to make the graph.

What stands in the padding is random, so a graph that ignores its mask is caught.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.formats import Graph

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

BATCHES = (1, 2, 7)
LARGE_BATCH = 64
SMALL_MODEL = 20_000_000  # weights; up to here every length is compared, and the large batch
REAL = 16  # images or texts in a batch of real ones
CALIBRATION_ROWS = 32  # random ones
ANSWERS = 16  # of a list, compared at once

Feed = dict[str, NDArray[Any]]


class Case(NamedTuple):
    """One set of inputs and what the model makes of it."""

    name: str  # "batch 2, length 5, padded"
    feed: Feed
    expected: Feed  # by output


class Samples:
    """Real images and texts, decoded and tokenised once.

    Args:
        model: whose processor is used.
        images: paths or references.
        texts: captions.
    """

    def __init__(self, model: TCL, images: Sequence[str | Path] = (), texts: Sequence[str] = ()) -> None:
        self.pixels = model.processor.images(images) if images else None
        self.tokens = model.processor.texts(texts) if texts else None


def cases(model: TCL, graph: Graph, samples: Samples) -> Iterator[Case]:
    """The cases of a graph: batches of 1, 2, 7 and 64, every length, with and without padding, and the real samples.

    Of a large model the batch of 64 and most lengths are left out.
    """
    draw = np.random.default_rng(0)
    small = is_small(model)
    inputs = {port.name for port in graph.inputs}
    if "input_ids" not in inputs:
        for batch in (*BATCHES, LARGE_BATCH) if small else BATCHES:
            yield _case(model, graph, f"batch {batch}, random pixels", _pixels(model, draw, batch), None, draw)
    else:
        for batch, length, padded in _lengths(model, small, alone=len(inputs) == 2):
            pixels = _pixels(model, draw, 1 if graph.name == "matcher" and (length + batch) % 2 else batch)
            tokens = _tokens(model, draw, batch, length, padded)
            name = f"batch {batch}, length {length}" + (", padded" if padded else "")
            if graph.name == "matcher":
                name += f", {len(pixels)} image" + ("s" if len(pixels) > 1 else "")
            yield _case(model, graph, name, pixels if len(inputs) > 2 else None, tokens, draw)
    yield from _real(model, graph, samples, draw)


def is_small(model: TCL) -> bool:
    """Is computing so cheap that everything is compared?"""
    return sum(parameter.numel() for parameter in model.parameters()) <= SMALL_MODEL


def calibration(model: TCL, graph: Graph, samples: Samples) -> list[Feed]:
    """Typical inputs of a graph, from real samples; none where they lack what it reads.

    Some random ones are among them, so that a range holds for inputs that are unlike the few real ones.
    """
    draw = np.random.default_rng(1)
    real = [case.feed for case in _real(model, graph, samples, draw)]
    if not real:
        return []
    reads_text = "input_ids" in real[0]
    rows, length = CALIBRATION_ROWS, model.processor.max_length
    pixels = None if graph.name == "text_encoder" else _pixels(model, draw, rows)
    tokens = _tokens(model, draw, rows, length, padded=True) if reads_text else None
    return [*real, _case(model, graph, "random", pixels, tokens, draw).feed]


def _real(model: TCL, graph: Graph, samples: Samples, draw: np.random.Generator) -> Iterator[Case]:
    inputs = {port.name for port in graph.inputs}
    reads_text = "input_ids" in inputs
    reads_images = len(inputs) != 2
    if (reads_text and samples.tokens is None) or (reads_images and samples.pixels is None):
        return
    images = [] if samples.pixels is None else list(samples.pixels)
    count = len(samples.tokens[0]) if reads_text and samples.tokens else len(images)
    for start in range(0, count, REAL):
        rows = range(start, min(start + REAL, count))
        pixels = np.stack([images[row % len(images)] for row in rows]) if reads_images else None
        tokens = None
        if reads_text and samples.tokens:
            ids, mask = (part[start : start + REAL] for part in samples.tokens)
            length = int(mask.sum(axis=1).max())
            tokens = ids[:, :length], mask[:, :length]
        yield _case(model, graph, f"real inputs {start + 1} to {rows[-1] + 1}", pixels, tokens, draw)


def _lengths(model: TCL, small: bool, alone: bool) -> Iterator[tuple[int, int, bool]]:
    """(batch, length, padded); of graphs that read more than the text, a batch per length, in turn."""
    longest = model.processor.max_length
    every = range(1, longest + 1)
    some = [length for length in every if length in (1, 2, 3, 7, longest // 2, longest)]
    for length in every if small else some:
        for batch in BATCHES if alone and small else (BATCHES[length % 3],):
            yield batch, length, False
            yield batch, length, True
    if small:
        yield LARGE_BATCH, longest, True


def _pixels(model: TCL, draw: np.random.Generator, batch: int) -> NDArray[np.uint8]:
    return draw.integers(0, 256, (batch, 3, *model.processor.image_size), dtype=np.uint8)


def _tokens(
    model: TCL, draw: np.random.Generator, batch: int, length: int, padded: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = draw.integers(0, model.processor.tokenizer.vocab_size, (batch, length), dtype=np.int64)
    lengths = draw.integers(1, length + 1, batch) if padded else np.full(batch, length)
    return ids, (np.arange(length) < lengths[:, None]).astype(np.int64)


def _case(
    model: TCL,
    graph: Graph,
    name: str,
    pixels: NDArray[np.uint8] | None,
    tokens: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    draw: np.random.Generator,
) -> Case:
    """The inputs that a graph takes of pixels and tokens, and what the model makes of them."""
    import torch

    feed: Feed = {}
    if tokens is not None:
        feed |= {"input_ids": tokens[0], "attention_mask": tokens[1]}
    with torch.inference_mode():
        if graph.name == "text_encoder":
            return Case(
                name,
                feed,
                {"text_embeds": model.encode_text(feed["input_ids"], feed["attention_mask"]).text_feat.numpy()},
            )
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
    from tcl.tasks.vqa import tokenize_answers

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
