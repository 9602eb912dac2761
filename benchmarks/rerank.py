"""Re-ranking against the plain evaluation, side by side, on ViT-B/16 and BERT-base with random weights.

python benchmarks/rerank.py                  # 40 images, 100 captions, 16 candidates, 256 pixels
python benchmarks/rerank.py --only memory    # peak memory by number of images

The plain side takes one query at a time, as published: captions padded to 30 tokens, the image's states repeated for
each candidate, so its keys and values are computed for every pair. Both sides score the same pairs and must agree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from tcl.config.recipe import ModelConfig
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer
from tcl.evaluation.reranking import PackedTexts, rank_by_vectors, score_pairs
from tcl.evaluation.retrieval import RetrievalSet, evaluate_retrieval
from tcl.models.tcl import TCL

PLAIN_LENGTH = 30
MEBIBYTE = 1 << 20
# glibc raises the size from which memory goes back to the system as soon as it is freed to that of the largest block
# freed so far. Then the heap keeps what nobody uses, the more the longer a process runs; here memory in use counts.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
TURNS = 20  # in which the sides alternate, so that other work on the machine slows both


def build(image_layers: int, text_layers: int) -> TCL:
    """The published widths with random weights; half of the text layers are fusion layers."""
    config = ModelConfig.model_validate(
        {
            "image_encoder_args": {"depth": image_layers},
            "text_encoder_args": {"num_hidden_layers": text_layers},
            "fusion_layer": text_layers // 2,
            "pretrained": False,
            "max_length": PLAIN_LENGTH,
        }
    )
    torch.manual_seed(0)
    model = TCL.from_config(config, 30522).eval()
    index = read_pairs(["scenes:train:500"])
    tokenizer = CaptionTokenizer.train((text for pair in index for text in pair.captions), 1000)
    model.processor = Processor(tokenizer, (config.image_size, config.image_size), PLAIN_LENGTH)
    return model


def shorten(pairs: RetrievalSet, captions: int) -> RetrievalSet:
    """As many captions, spread evenly over the images."""
    nth_of_image = [list(pairs.image_of_text[:row]).count(image) for row, image in enumerate(pairs.image_of_text)]
    rows = np.sort(np.argsort(nth_of_image, kind="stable")[:captions])
    return RetrievalSet(pairs.images, [pairs.texts[row] for row in rows], pairs.image_of_text[rows])


class Plain:
    """One query at a time; `scores` [I, k] and [T, k] of the best candidates, in their order."""

    def __init__(self, model: TCL, image_embeds: Tensor, image_feat: Tensor, pairs: RetrievalSet, k: int) -> None:
        ids, mask = model.processor.texts(pairs.texts)
        missing = ((0, 0), (0, PLAIN_LENGTH - ids.shape[1]))
        self.model, self.image_embeds = model, image_embeds
        self.texts = model.encode_text(np.pad(ids, missing), np.pad(mask, missing))
        sims = image_feat @ self.texts.text_feat.T
        best = [row.topk(min(k, len(row))).indices for rows in (sims, sims.T) for row in rows]
        self.queries = [(row, chosen, row < len(sims)) for row, chosen in enumerate(best)]
        self.found: list[Tensor] = []

    def run(self, part: slice) -> None:
        images = len(self.image_embeds)
        for row, best, from_image in self.queries[part]:
            if from_image:
                embeds = self.image_embeds[row].repeat(len(best), 1, 1)
                states, mask = self.texts.text_embeds[best], self.texts.attention_mask[best]
            else:
                embeds = self.image_embeds[best]
                states = self.texts.text_embeds[row - images].repeat(len(best), 1, 1)
                mask = self.texts.attention_mask[row - images].repeat(len(best), 1)
            fused = self.model.fuse(states, mask, self.model.image_key_values(embeds))
            self.found.append(self.model.itm_head(fused[:, 0])[:, 1])

    @property
    def scores(self) -> tuple[Tensor, Tensor]:
        images = len(self.image_embeds)
        return torch.stack(self.found[:images]), torch.stack(self.found[images:])


class Ours:
    """The same by the package."""

    def __init__(self, model: TCL, image_embeds: Tensor, image_feat: Tensor, pairs: RetrievalSet, k: int) -> None:
        ids, mask = model.processor.texts(pairs.texts)
        self.model, self.image_embeds = model, image_embeds
        self.texts = PackedTexts(model, ids, mask, 64, np.arange(len(ids)))
        self.ranking = rank_by_vectors(image_feat, self.texts.text_feat, torch.from_numpy(pairs.image_of_text), k)
        self.queries = list(range(len(image_embeds)))
        self.pairs = self.ranking.pairs()
        self.found = torch.zeros(len(self.pairs))

    def run(self, part: slice) -> None:
        chunk = torch.tensor(self.queries[part]), self.image_embeds[part]
        self.found += score_pairs(self.model, [chunk], lambda rows: self.texts, self.pairs, len(self.texts.lengths))

    @property
    def scores(self) -> tuple[Tensor, Tensor]:
        return self.ranking.spread(self.pairs, self.found)


@torch.inference_mode()
def speed(images: int, captions: int, k: int) -> bool:
    """Print both sides, which take turns; is ours four times as fast, with the same scores?"""
    model = build(12, 12)
    pairs = shorten(RetrievalSet.from_pairs(read_pairs([f"scenes:val:{images}"])), captions)
    chunks = [model.encode_image(model.processor.images(pairs.images[s : s + 8])) for s in range(0, images, 8)]
    image_embeds, image_feat = torch.cat([c.image_embeds for c in chunks]), torch.cat([c.image_feat for c in chunks])
    lengths = model.processor.texts(pairs.texts)[1].sum(axis=1)
    print(
        f"{images} images, {len(lengths)} captions of {lengths.mean():.1f} tokens, {k} candidates, "
        f"{torch.get_num_threads()} threads; without encoding the images, which is the same on both sides",
        flush=True,
    )
    seconds, busy, sides = {}, {}, {}
    for name, side in {"plain": Plain, "ours": Ours}.items():
        started, busy_before = time.perf_counter(), time.process_time()
        sides[name] = side(model, image_embeds, image_feat, pairs, k)
        seconds[name], busy[name] = time.perf_counter() - started, time.process_time() - busy_before
    for turn in range(TURNS):
        for name, side in sides.items():
            total = len(side.queries)
            started, busy_before = time.perf_counter(), time.process_time()
            side.run(slice(turn * total // TURNS, (turn + 1) * total // TURNS))
            seconds[name] += time.perf_counter() - started
            busy[name] += time.process_time() - busy_before
    asked = images * min(k, captions) + captions * min(k, images)
    for name in sides:
        print(f"{name:<6}{seconds[name]:8.1f} s {asked / seconds[name]:8.1f} pairs/s {busy[name]:8.1f} CPU s")
    ratio = seconds["plain"] / seconds["ours"]
    both = zip(sides["ours"].scores, sides["plain"].scores, strict=True)
    difference = max(float(((a - b).abs() / (1 + b.abs())).max()) for a, b in both)
    print(f"ratio {ratio:.2f} by the clock, {busy['plain'] / busy['ours']:.2f} by CPU time")
    print(f"largest difference of a score {difference:.1e}", flush=True)
    return ratio >= 4 and difference <= 1e-4


def measure(images: int, keep: bool) -> None:
    """Peak memory of an evaluation above what the process had before; runs in a process of its own."""
    model, index = build(1, 2), read_pairs([f"scenes:val:{images}"])
    _evaluate(model, read_pairs(["scenes:val:8"]), keep)  # so that libraries have allocated what they keep
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = _kibibytes("VmRSS")
    _evaluate(model, index, keep)
    print((_kibibytes("VmHWM") - before) // 1024)


def _kibibytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))


def _evaluate(model: TCL, index: PairIndex, keep: bool) -> None:
    evaluate_retrieval(model, index, rerank=2, batch_size=8, token_memory=1 << 40 if keep else 32 * MEBIBYTE)


def memory() -> bool:
    """Print peak memory by number of images; does it stay where it is?"""
    print("images   peak above the start, MiB: at most 32 MiB of tokens   all tokens kept")
    peaks = []
    for images in (100, 200, 400):
        row = []
        for keep in ([], ["--keep"]):
            command = [sys.executable, __file__, "--measure", str(images), *keep]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | RETURNED)
            row.append(int(done.stdout))
        peaks.append(row)
        print(f"{images:>6} {row[0]:>53} {row[1]:>17}", flush=True)
    # Vectors and lists of candidates grow with the set; the tokens of all its images are many times that.
    bounded, kept = (last - first for first, last in zip(peaks[0], peaks[-1], strict=True))
    return bounded <= kept / 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--only", choices=["speed", "memory"])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if options.measure:
        measure(options.measure, options.keep)
        return
    fast = options.only == "memory" or speed(options.images, options.captions, options.k)
    flat = options.only == "speed" or memory()
    if not fast or not flat:
        sys.exit("not 4 times as fast with the same scores" if not fast else "memory grows with the number of images")


if __name__ == "__main__":
    main()
