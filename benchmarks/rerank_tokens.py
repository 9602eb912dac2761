"""Re-ranking the hits of a text query from kept tokens, against the same from the images, on a base model.

    python benchmarks/rerank_tokens.py              # 64 JPEGs of 640x480, ViT-B/16 and BERT-base with random weights

Both sides take turns, score the same hits by the same query, and must agree up to the rounding of float16 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from tcl.config.recipe import ModelConfig
from tcl.data.pairs.table import read_pairs
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer
from tcl.encoders.torch import TorchMatcher
from tcl.models.tcl import TCL
from tcl.search.exact import ExactCollection
from tcl.search.rerank import Reranker
from tcl.vectors.reader import VectorFile
from tcl.vectors.writer import VectorWriter

WANTED = 5.0
LENGTH = 30


def build(layers: int) -> TCL:
    """The published widths with random weights."""
    settings: dict[str, Any] = {"pretrained": False, "max_length": LENGTH, "fusion_layer": layers // 2}
    settings |= {"image_encoder_args": {"depth": layers}, "text_encoder_args": {"num_hidden_layers": layers}}
    config = ModelConfig.model_validate(settings)
    torch.manual_seed(0)
    model = TCL.from_config(config, 30522).eval()
    captions = (text for pair in read_pairs(["scenes:train:500"]) for text in pair.captions)
    model.processor = Processor(CaptionTokenizer.train(captions, 1000), config.image_shape, LENGTH)
    return model


def write(folder: Path, matcher: TorchMatcher, count: int) -> VectorFile:
    """JPEGs, and their vectors with kept tokens."""
    draw = np.random.default_rng(0)
    processor, names = matcher.model.processor, [f"{row}.jpg" for row in range(count)]
    for name in names:
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    writer = None
    for start in range(0, count, 8):
        chunk = names[start : start + 8]
        vectors, tokens = matcher.image_tokens(processor.images([folder / name for name in chunk]))
        if writer is None:
            shape = tokens.shape[1:]
            writer = VectorWriter(
                folder / "v.npy", vectors.shape[1], "float32", "path", token_shape=(shape[0], shape[1])
            )
        writer.append(chunk, chunk, vectors, tokens.astype(np.float16))
    assert writer is not None
    writer.finish({"kind": "image", "count": count, "model_hash": "0", "dim": writer.dim, "root": str(folder)})
    return VectorFile.open(folder / "v.npy")


class WithoutTokens(ExactCollection):
    """As if none had been kept."""

    def tokens(self, hits: Any) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hits", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = build(options.layers)
    matcher, query = TorchMatcher(model), "a small red circle left of a large blue square"
    with tempfile.TemporaryDirectory() as folder:
        vectors = write(Path(folder), matcher, options.hits)
        sides = {"tokens": ExactCollection(vectors), "images": WithoutTokens(vectors)}
        rerankers = {name: Reranker(matcher, model.processor, side, None) for name, side in sides.items()}
        hits = sides["tokens"].search(vectors.take([0]), options.hits)[0]
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        matches = {}
        for turn in range(options.turns + 1):
            for name, reranker in rerankers.items():
                part = hits if turn else hits[:2]  # the first turn only warms up
                began = time.perf_counter()
                found = reranker.by_text(query, part)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
                    matches[name] = {hit.id: hit.match for hit in found}
    difference = max(abs(match - matches["images"][name]) for name, match in matches["tokens"].items())
    result: dict[str, Any] = {name: round(median(times), 3) for name, times in seconds.items()}
    result |= {"hits": options.hits, "threads": torch.get_num_threads(), "largest_difference": difference}
    result |= {"ratio": round(result["images"] / result["tokens"], 2), "wanted": WANTED}
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if result["ratio"] < WANTED or difference > 0.01:
        sys.exit(f"{result['ratio']} times as fast with a difference of {difference:.1e}; {WANTED} times wanted")


if __name__ == "__main__":
    main()
