"""Images per second from JPEG files to a model's pixels, against plain Pillow on the same files and threads.

python benchmarks/decode.py [--threads 2] [--rounds 5] [--out benchmarks/results/decode.json]

The plain side opens, converts and resizes each file with Pillow and stacks the batch: what a careful user writes. Our
side is `Processor.fast`, as `tcl embed` uses it, with either resizer. How far pixels are from the plain ones is given
in grey levels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import make_files
from PIL import Image
from report import environment, write

from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer

SIDE = 256
SIZES = {"640x480": ((640, 480), 32, None), "4000x3000": ((4000, 3000), 8, 2.5)}  # size, files, what ours must reach

Side = Callable[[list[Path], ThreadPoolExecutor], np.ndarray]


def plain(paths: list[Path], pool: ThreadPoolExecutor) -> np.ndarray:
    """A batch [B, 3, H, W] by Pillow alone."""

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    return np.stack(list(pool.map(read, paths))).transpose(0, 3, 1, 2)


def ours(processor: Processor) -> Side:
    """A batch by a processor, written into one array."""

    def read(paths: list[Path], pool: ThreadPoolExecutor) -> np.ndarray:
        batch = np.empty((len(paths), 3, SIDE, SIDE), np.uint8)
        list(pool.map(processor.image_into, paths, batch))
        return batch

    return read


def compare(folder: Path, size: tuple[int, int], count: int, threads: int, rounds: int) -> dict[str, Any]:
    """All sides in turn over the same files."""
    _, paths = make_files(folder, size, count)
    exact = Processor(CaptionTokenizer.train(["a photograph"], 50), (SIDE, SIDE), 25)
    sides: dict[str, Side] = {"plain": plain, "pillow": ours(exact.fast()), "torch": ours(exact.fast("torch"))}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with ThreadPoolExecutor(threads) as pool:
        expected = plain(paths, pool).astype(int)
        distances = {name: np.abs(side(paths, pool) - expected) for name, side in sides.items() if name != "plain"}
        for _ in range(rounds):
            for name, side in sides.items():
                started = time.perf_counter()
                side(paths, pool)
                seconds[name].append(time.perf_counter() - started)
    figures: dict[str, Any] = {"plain_images_per_s": round(count / statistics.median(seconds["plain"]), 1)}
    for name, distance in distances.items():
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        figures[name] = {
            "images_per_s": round(count / statistics.median(seconds[name]), 1),
            "ratio": round(statistics.median(ratios), 2),
            "mean_grey_levels": round(float(distance.mean()), 3),
            "max_grey_levels": int(distance.max()),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"threads": arguments.threads, **environment()}
    with tempfile.TemporaryDirectory() as temporary:
        for name, (size, count, wanted) in SIZES.items():
            figures[name] = compare(Path(temporary, name), size, count, arguments.threads, arguments.rounds)
            figures[name]["wanted"] = wanted
    write(figures, arguments.out)


if __name__ == "__main__":
    main()
