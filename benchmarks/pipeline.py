"""Images per second of `embed` with an encoder that costs nothing, against the decoder alone with the same workers.

python benchmarks/pipeline.py [--images 400] [--workers 2] [--rounds 5] [--out FILE]

The decoder alone is a pool of that many threads that reads, decodes and resizes the same JPEGs (640 x 480, quality 90)
to 256 x 256, and does nothing with them. Sides alternate; the figure is the median of the ratios of neighbouring
rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.synthetic import ProjectionEncoder, make_processor
from tcl.data.inputs.listing import Inputs, list_inputs
from tcl.embedding.run import embed
from tcl.encoders.base import reading_processor

WANTED = 0.85
SIDE = 256


class FreeEncoder(ProjectionEncoder):
    """Gives every image the same vector."""

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to vectors [B, E]."""
        return np.full((len(pixel_values), self.embed_dim), 0.25, np.float32)


def make_jpegs(folder: Path, count: int) -> None:
    """Smooth noise of several scales, as JPEGs of about 60 KB."""
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = np.zeros((480, 640, 3), np.float32)
        for cells in (4, 16, 64, 240):
            noise = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC), np.float32) / 4
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def decode_alone(inputs: Inputs, encoder: ProjectionEncoder, workers: int) -> float:
    """Images per second of the threads by themselves."""
    processor = reading_processor(encoder)
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda row: processor.image(inputs.location(row)).shape, range(len(inputs))):
            pass
    return len(inputs) / (time.perf_counter() - started)


def compare(images: int, workers: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn over the same files."""
    rates: dict[str, list[float]] = {"pipeline": [], "decoder": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "images").mkdir()
        make_jpegs(folder / "images", images)
        inputs, encoder = list_inputs(str(folder / "images")), FreeEncoder(make_processor(SIDE))
        for number in range(rounds + 1):
            decoder = decode_alone(inputs, encoder, workers)
            started = time.perf_counter()
            embed(inputs, encoder, folder / f"{number}.npy", batch_size=32, workers=workers)
            pipeline = images / (time.perf_counter() - started)
            if number:  # the first round warms up
                rates["decoder"].append(decoder)
                rates["pipeline"].append(pipeline)
    ratios = [a / b for a, b in zip(rates["pipeline"], rates["decoder"], strict=True)]
    return {
        "images": images,
        "workers": workers,
        "decoder_images_per_s": round(statistics.median(rates["decoder"]), 1),
        "pipeline_images_per_s": round(statistics.median(rates["pipeline"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "wanted": WANTED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    text = json.dumps(compare(arguments.images, arguments.workers, arguments.rounds), indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
