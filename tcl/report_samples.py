"""What a model makes of some pairs, for the report: the captions it finds nearest to each image."""

from __future__ import annotations

from io import BytesIO

import torch
from PIL import Image

from tcl.data.images import ImageError, decode
from tcl.data.index import PairIndex
from tcl.models.tcl import TCL, TextOutput
from tcl.report import ReportSample

CANDIDATES = 64  # pairs whose captions compete
RERANKED = 16  # of them, by vectors, that the fusion encoder looks at
NEAREST = 3  # captions that are shown
THUMBNAIL = 300  # pixels of the longer side; shown at half of that


@torch.inference_mode()
def collect_samples(model: TCL, index: PairIndex, count: int = 8) -> list[ReportSample]:
    """Pairs from all over the data with the captions nearest to each image, by vectors and by matching.

    The model's mode (training or evaluation) is as it was afterwards, and so is the state of every generator.

    Args:
        model: with its processor.
        index: the pairs; at most `CANDIDATES` of them, evenly spaced, give the captions to choose from.
        count: how many to show; images that cannot be read are left out.
    """
    size = min(len(index), CANDIDATES)
    pairs = [index[place * len(index) // size] for place in range(size)]
    captions = list(dict.fromkeys(pair.captions[0] for pair in pairs))
    if not captions:
        return []
    was_training = model.training
    model.eval()
    try:
        texts = model.encode_text(*model.processor.texts(captions))
        samples: list[ReportSample] = []
        step = max(size // count, 1)
        for pair in [pair for start in range(step) for pair in pairs[start::step]]:
            if len(samples) == count:
                break
            try:
                picture = decode(pair.image)
            except ImageError:
                continue
            samples.append(_sample(model, picture, pair.captions[0], captions, texts))
        return samples
    finally:
        model.train(was_training)


def _sample(model: TCL, picture: Image.Image, own: str, captions: list[str], texts: TextOutput) -> ReportSample:
    image = model.encode_image(model.processor.images([picture]))
    cosines = (image.image_feat.float() @ texts.text_feat.float().T)[0]
    best = cosines.topk(min(RERANKED, len(captions))).indices
    chosen = TextOutput(*(part[best] for part in texts))
    matches = model.match(image, chosen).float().softmax(dim=-1)[:, 1]
    by_vectors = [(captions[place], cosines[place].item()) for place in best[:NEAREST].tolist()]
    order = matches.argsort(descending=True)[:NEAREST].tolist()
    by_matching = [(captions[best[place]], matches[place].item()) for place in order]
    return ReportSample(_thumbnail(picture), own, by_vectors, by_matching)


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()
