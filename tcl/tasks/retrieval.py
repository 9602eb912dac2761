"""Image-text retrieval: by vectors alone, and with the best candidates re-ranked by the fusion encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl.data.images import ImageError
from tcl.data.index import PairIndex
from tcl.errors import DataError
from tcl.metrics import retrieval_metrics
from tcl.models.tcl import TCL, ImageOutput, TextOutput

NOT_RANKED = -100.0  # score of a pair that re-ranking did not look at, as published


@dataclass
class RetrievalSet:
    """Distinct images and all their captions.

    Attributes:
        images: one reference per image.
        texts: every caption.
        image_of_text: the image that each caption describes.
    """

    images: list[str]
    texts: list[str]
    image_of_text: NDArray[np.int64]

    @classmethod
    def from_pairs(cls, index: PairIndex) -> RetrievalSet:
        """Rows that name the same image become one image with all their captions."""
        images: dict[str, int] = {}
        texts, image_of_text = [], []
        for pair in index:
            image = images.setdefault(pair.image, len(images))
            texts += pair.captions
            image_of_text += [image] * len(pair.captions)
        return cls(list(images), texts, np.array(image_of_text))


@dataclass
class RetrievalResult:
    """Metrics in percent by vectors alone and, when asked for, re-ranked; and what could not be read."""

    vectors: dict[str, float]
    reranked: dict[str, float] | None
    images: int
    texts: int
    bad: list[dict[str, str]]


@torch.inference_mode()
def evaluate_retrieval(
    model: TCL,
    index: PairIndex,
    *,
    rerank: int = 0,
    batch_size: int = 64,
    workers: int = 4,
    progress: Callable[[int], None] = lambda done: None,
) -> RetrievalResult:
    """Recall of every caption's image and every image's captions.

    Args:
        model: in evaluation mode, with its processor.
        index: the pairs.
        rerank: candidates per query for the fusion encoder, clipped to the set; 0 leaves it out.
        batch_size: of both encoders.
        workers: decoding threads.
        progress: told how many images, then pairs, were done since the last call.

    Raises:
        DataError: fewer than two images can be read.
    """
    pairs = RetrievalSet.from_pairs(index)
    keep_tokens = rerank > 0  # vectors alone do not need the token states, which are hundreds of times larger
    images, pairs, bad = _encode_images(model, pairs, batch_size, workers, keep_tokens, progress)
    texts = _encode_texts(model, pairs.texts, batch_size, keep_tokens)
    with torch.autocast(model.device.type, enabled=False):
        sims = images.image_feat @ texts.text_feat.T
    scores = sims.cpu().numpy()
    vectors = retrieval_metrics(scores, scores.T, pairs.image_of_text)
    reranked = None
    if rerank:
        score_i2t, score_t2i = rerank_scores(model, images, texts, sims, rerank, batch_size, progress)
        reranked = retrieval_metrics(score_i2t.numpy(), score_t2i.numpy(), pairs.image_of_text)
    return RetrievalResult(vectors, reranked, len(pairs.images), len(pairs.texts), bad)


def rerank_scores(
    model: TCL,
    images: ImageOutput,
    texts: TextOutput,
    sims: Tensor,
    top_k: int,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """ITM scores of the best candidates of every query.

    Pairs are visited by image, and a pair that both directions want is computed once.

    Args:
        images: I encoded images.
        texts: T encoded texts.
        sims: their similarities [I, T].
        top_k: candidates per query.

    Returns:
        Scores [I, T] and [T, I] on the CPU: the logit of "match" where re-ranked, else -100.
    """
    from_image = _top(sims, top_k)
    from_text = _top(sims.T, top_k).T
    wanted = from_image | from_text
    scores = torch.full(sims.shape, NOT_RANKED)
    for row in range(len(sims)):
        columns = wanted[row].nonzero().squeeze(1)
        image = model.image_key_values(images.image_embeds[row : row + 1].to(model.device))
        for chunk in columns.split(batch_size):
            mask = texts.attention_mask[chunk]
            longest = int(mask.sum(dim=1).max())
            fused = model.fuse(texts.text_embeds[chunk, :longest], mask[:, :longest], image)
            scores[row, chunk.cpu()] = model.itm_head(fused[:, 0])[:, 1].float().cpu()
        progress(len(columns))
    unranked = scores.new_tensor(NOT_RANKED)
    return torch.where(from_image.cpu(), scores, unranked), torch.where(from_text.cpu(), scores, unranked).T


def _top(sims: Tensor, top_k: int) -> Tensor:
    best = sims.topk(min(top_k, sims.shape[1]), dim=1).indices
    return torch.zeros_like(sims, dtype=torch.bool).scatter_(1, best, True)


def _encode_images(
    model: TCL,
    pairs: RetrievalSet,
    batch_size: int,
    workers: int,
    keep_tokens: bool,
    progress: Callable[[int], None],
) -> tuple[ImageOutput, RetrievalSet, list[dict[str, str]]]:
    """Encode what can be read; the set loses the images that cannot, with their captions."""
    embeds, feats, bad = [], [], []
    kept: list[int] = []
    for start, arrays in _decoded(model, pairs.images, batch_size, workers):
        good = [array for array in arrays if not isinstance(array, ImageError)]
        for position, array in enumerate(arrays, start):
            if isinstance(array, ImageError):
                bad.append({"image": pairs.images[position], "reason": array.message})
            else:
                kept.append(position)
        if good:
            output = model.encode_image(np.stack(good))
            embeds.append(output.image_embeds if keep_tokens else output.image_embeds.new_empty(len(good), 0))
            feats.append(output.image_feat)
        progress(len(arrays))
    if len(kept) < 2:
        reason = f"; the first: {bad[0]['image']}: {bad[0]['reason']}" if bad else ""
        raise DataError(
            f"retrieval needs at least two readable images, found {len(kept)}{reason}",
            hint="relative paths start from --images, else from the folder of the data file",
        )
    place = {image: row for row, image in enumerate(kept)}
    texts = [t for t, image in enumerate(pairs.image_of_text.tolist()) if image in place]
    remaining = RetrievalSet(
        [pairs.images[image] for image in kept],
        [pairs.texts[t] for t in texts],
        np.array([place[int(pairs.image_of_text[t])] for t in texts]),
    )
    return ImageOutput(torch.cat(embeds), torch.cat(feats)), remaining, bad


def _decoded(
    model: TCL, images: list[str], batch_size: int, workers: int
) -> Iterator[tuple[int, list[NDArray[np.uint8] | ImageError]]]:
    """Batches of pixels in order; the next batch decodes while this one is encoded."""

    def read(reference: str) -> NDArray[np.uint8] | ImageError:
        try:
            return model.processor.image(reference)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        starts = range(0, len(images), batch_size)
        ahead = [pool.submit(read, image) for image in images[:batch_size]]
        for start in starts:
            current, following = ahead, images[start + batch_size : start + 2 * batch_size]
            ahead = [pool.submit(read, image) for image in following]
            yield start, [future.result() for future in current]


def _encode_texts(model: TCL, texts: list[str], batch_size: int, keep_tokens: bool) -> TextOutput:
    input_ids, attention_mask = model.processor.texts(texts)
    embeds, feats = [], []
    for start in range(0, len(texts), batch_size):
        mask = attention_mask[start : start + batch_size]
        longest = int(mask.sum(axis=1).max())
        output = model.encode_text(input_ids[start : start + batch_size, :longest], mask[:, :longest])
        feats.append(output.text_feat)
        if keep_tokens:  # at one length, so that the set is one tensor; what is added lies outside the mask
            embeds.append(F.pad(output.text_embeds, (0, 0, 0, input_ids.shape[1] - longest)))
        else:
            embeds.append(output.text_embeds.new_empty(len(mask), 0))
    masks = torch.as_tensor(attention_mask, device=model.device).bool()
    return TextOutput(torch.cat(embeds), torch.cat(feats), masks)
