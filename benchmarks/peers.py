"""Images and sentences per second of `tcl embed` from an ONNX bundle against open_clip called the usual way.

python benchmarks/peers.py [--rounds 3] [--precision fp32,int8] [--out benchmarks/results/peers.json]

Needs `pip install open_clip_torch`. Both sides have random weights, read the same 200 JPEGs of 640 x 480 and the same
captions from disk, and use the same number of threads. open_clip's ViT-B-16 is called as its documentation does:
a DataLoader over its own transform, then `encode_image` or `encode_text` under `torch.no_grad`. Ours is what the
command runs, from a list of files to the vectors on disk.

open_clip sees 224 pixels and we 256, so its rate is corrected to our size by the multiply-adds of the two encoders.
Texts are not corrected: its tower pads each to 77 tokens, ours to the longest of a batch, and that is the point.
Each side runs in its own process, in turn; the figure is the median of the ratios of neighbouring rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import photograph
from report import environment, write

from export.bundle import build_bundle
from tcl.config.recipe import ModelConfig
from tcl.data.inputs.listing import list_inputs
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer
from tcl.embedding.run import embed
from tcl.encoders.onnx import OnnxEncoder
from tcl.models.tcl import TCL
from tcl.weights.files import hash_model

IMAGES, TEXTS, BATCH, THREADS = 200, 640, 32, 2
WANTED = {"fp32": {"image": 1.2, "text": 4.0}, "int8": {"image": 1.9}}
WORDS = [
    "a",
    "the",
    "two",
    "young",
    "old",
    "red",
    "small",
    "large",
    "man",
    "woman",
    "dog",
    "cat",
    "boat",
    "street",
    "table",
    "kitchen",
    "beach",
    "snow",
    "rides",
    "holds",
]


# --- the files ---------------------------------------------------------------------------------------------------


def make_files(folder: Path) -> None:
    """Photographs, captions of the length that people write (8 to 14 words), and the bundle of a base-size model."""
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph(640, 480, seed=number % 8).save(folder / "images" / f"{number}.jpg", quality=90)
    captions = [" ".join(draw.choice(WORDS, draw.integers(8, 15))) for _ in range(TEXTS)]
    (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = ModelConfig(pretrained=False)
    model = TCL.from_config(config, 30522).eval()
    model.processor = Processor(CaptionTokenizer.train(captions, 1000), (256, 256), config.max_length)
    model.model_hash = hash_model(model)
    build_bundle(model, folder / "bundle", precisions=("fp32", "int8"), check=False, matcher=False)


# --- the two sides -----------------------------------------------------------------------------------------------


def ours(folder: Path, what: str, precision: str) -> float:
    """Inputs per second of `tcl embed`, the second of two runs."""
    encoder = OnnxEncoder(folder / "bundle", precision=precision, lanes=THREADS)
    inputs = list_inputs(str(folder / ("images" if what == "image" else "captions.txt")))
    rate = 0.0
    for _ in range(2):  # the first opens the session
        started = time.perf_counter()
        report = embed(inputs, encoder, folder / "ours.npy", batch_size=BATCH, workers=THREADS, restart=True)
        rate = report.count / (time.perf_counter() - started)
    return rate


def open_clip_rate(folder: Path, what: str) -> float:
    """The same of open_clip."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-16", pretrained=None)
    model.eval()
    if what == "image":
        data: Any = _Images(sorted((folder / "images").iterdir()), transform)
        encode, workers = model.encode_image, THREADS
    else:
        tokenizer = open_clip.get_tokenizer("ViT-B-16")
        data = [tokenizer(line)[0] for line in (folder / "captions.txt").read_text(encoding="utf-8").splitlines()]
        encode, workers = model.encode_text, 0
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers)
    with torch.no_grad():
        encode(next(iter(loader))[:2])
        started = time.perf_counter()
        vectors = [torch.nn.functional.normalize(encode(batch), dim=-1) for batch in loader]
        np.save(folder / "open_clip.npy", torch.cat(vectors).numpy())
    return len(data) / (time.perf_counter() - started)


class _Images(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        from PIL import Image

        tensor: torch.Tensor = self.transform(Image.open(self.paths[row]))
        return tensor


def multiply_adds(side: int, patch: int = 16, width: int = 768, layers: int = 12) -> float:
    """Of a ViT for one image: patch embedding, weights, and attention."""
    patches = (side // patch) ** 2
    tokens = patches + 1
    return patches * 3 * patch**2 * width + layers * tokens * (12 * width**2 + 2 * tokens * width)


def cosine(folder: Path) -> float:
    """Mean cosine between int8 and float32 vectors of the photographs."""
    vectors = []
    for precision in ("fp32", "int8"):
        encoder = OnnxEncoder(folder / "bundle", precision=precision, lanes=THREADS)
        paths = sorted((folder / "images").iterdir())[:32]
        vectors.append(encoder.encode_image(encoder.processor.images(paths)))
    return float((vectors[0] * vectors[1]).sum(axis=1).mean())


# --- the measurement ---------------------------------------------------------------------------------------------


def compare(folder: Path, what: str, precision: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, each in a process of its own."""
    rates: dict[str, list[float]] = {"ours": [], "open_clip": []}
    for number in range(rounds):
        for side in rates:
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--what", what]
            output = subprocess.run([*command, "--precision", precision], stdout=subprocess.PIPE, text=True, check=True)
            rates[side].append(float(output.stdout.split()[-1]))
            print(f"{what} {precision} round {number + 1}, {side}: {rates[side][-1]:.2f}/s", file=sys.stderr)
    size = multiply_adds(256) / multiply_adds(224) if what == "image" else 1.0
    ratios = [size * mine / theirs for mine, theirs in zip(rates["ours"], rates["open_clip"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "wanted": WANTED[precision].get(what),
        "corrected_for_size": round(size, 3),
        **{f"{side}_per_s": round(statistics.median(values), 2) for side, values in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32,int8")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--side", choices=["ours", "open_clip"], help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=["image", "text"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.side == "ours":
        print(ours(arguments.folder, arguments.what, arguments.precision))
    elif arguments.side:
        print(open_clip_rate(arguments.folder, arguments.what))
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_files(folder)
            figures: dict[str, Any] = {**environment(), "threads": THREADS, "rounds": arguments.rounds}
            for precision in arguments.precision.split(","):
                for what in WANTED[precision]:
                    figures[f"{what} {precision}"] = compare(folder, what, precision, arguments.rounds)
            if "int8" in arguments.precision:
                figures["int8_mean_cosine"] = round(cosine(folder), 4)
            write(figures, arguments.out)


if __name__ == "__main__":
    main()
