"""Images per second of the training loader against a plain Pillow and torchvision DataLoader, on the same files.

python benchmarks/loader.py [--workers 2] [--rounds 5] [--out benchmarks/results/loader.json]

Both sides read the same JPEGs with the same number of workers and make two views of each by the published augmentation
list. The plain side opens and converts each image once and calls torchvision's transforms and stock Pillow operations:
what a careful user writes. RandAugment there has our ten operations at the same strengths and probabilities, in
Pillow's own versions. It ends in normalised floats, ours in uint8 that the model normalises. Sides alternate; the
figure is the median of the ratios of neighbouring rounds.

The files are made here: landscapes of fractal noise with edges and grain, 640 x 480 and 4000 x 3000, quality 90.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from report import environment, write
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tcl.data.images.augment import build_transform
from tcl.data.images.randaugment import ENHANCE, FILL, ROTATE, SHEAR, TRANSLATE
from tcl.data.loader import TrainLoader
from tcl.data.pairs.samples import PairSamples
from tcl.data.pairs.table import read_pairs
from tcl.data.tokenizer import CaptionTokenizer

SIDE = 256
BATCH = 8
CAPTION = "a photograph of hills under a clouded sky"
SIZES = {"640x480": ((640, 480), 96, 1.3), "4000x3000": ((4000, 3000), 16, 2.0)}  # size, files, what ours must reach


# --- the files ---------------------------------------------------------------------------------------------------


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Something with a photograph's spectrum: noise of all scales with falling strength, sharp edges, and grain."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 110.0, np.float32)
    for octave in range(2, 9):
        cells = generator.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
        strength = 90 * 0.55 ** (octave - 2) * np.array([1.0, 0.9, 0.7], np.float32)
        for channel in range(3):
            layer = Image.fromarray(cells[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += strength[channel] * np.asarray(layer)
    ridge = (0.5 + 0.2 * np.sin(np.linspace(0, 9, width))) * height
    pixels[np.arange(height)[:, None] > ridge] *= 0.6
    pixels += generator.normal(0, 5, (height, width, 1)).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_files(folder: Path, size: tuple[int, int], count: int) -> tuple[Path, list[Path]]:
    """Write `count` JPEGs and the table of pairs that names them."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photograph(*size, seed=number % 4).save(path, "JPEG", quality=90)
    table = folder / "pairs.jsonl"
    rows = [json.dumps({"image": path.name, "caption": CAPTION}) for path in paths]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table, paths


# --- the plain side ----------------------------------------------------------------------------------------------


def _affine(coefficients: Callable[[int], tuple[float, ...]]) -> Callable[[Image.Image, int], Image.Image]:
    def warp(image: Image.Image, sign: int) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            coefficients(sign),
            Image.Resampling.BILINEAR,
            fillcolor=(FILL, FILL, FILL),
        )

    return warp


PLAIN_OPERATIONS: list[Callable[[Image.Image, int], Image.Image]] = [
    lambda image, _: image,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, _: ImageEnhance.Brightness(image).enhance(ENHANCE),
    lambda image, _: ImageEnhance.Sharpness(image).enhance(ENHANCE),
    _affine(lambda sign: (1, sign * SHEAR, 0, 0, 1, 0)),
    _affine(lambda sign: (1, 0, 0, sign * SHEAR, 1, 0)),
    _affine(lambda sign: (1, 0, sign * TRANSLATE, 0, 1, 0)),
    _affine(lambda sign: (1, 0, 0, 0, 1, sign * TRANSLATE)),
    lambda image, sign: image.rotate(sign * ROTATE, Image.Resampling.BILINEAR, fillcolor=(FILL, FILL, FILL)),
]


def plain_randaugment(image: Image.Image) -> Image.Image:
    """Two operations drawn with replacement, each applied with probability one half."""
    for choice in torch.randint(len(PLAIN_OPERATIONS), (2,)).tolist():
        if torch.rand(()) < 0.5:
            image = PLAIN_OPERATIONS[choice](image, 1 if torch.rand(()) < 0.5 else -1)
    return image


def plain_blur(image: Image.Image) -> Image.Image:
    """Gaussian blur of a random radius, half of the time."""
    if torch.rand(()) < 0.5:
        return image
    return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * torch.rand(()).item()))


class PlainPairs(Dataset[tuple[torch.Tensor, torch.Tensor, str]]):
    """Two views of each file, as torchvision's documentation would write it."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    SIDE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                plain_blur,
                transforms.RandomHorizontalFlip(),
                plain_randaugment,
                transforms.ToTensor(),
                transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        image = Image.open(self.paths[row]).convert("RGB")
        return self.transform(image), self.transform(image), CAPTION


# --- the measurement ---------------------------------------------------------------------------------------------


def images_per_second(epoch: Iterator[Any], count: int) -> float:
    """Read one epoch of `count` images."""
    started = time.perf_counter()
    for _ in epoch:
        pass
    return count / (time.perf_counter() - started)


def compare(folder: Path, size: tuple[int, int], count: int, workers: int, rounds: int) -> dict[str, Any]:
    """Both loaders in turn over the same files."""
    table, paths = make_files(folder, size, count)
    samples = PairSamples(
        read_pairs([str(table)]), CaptionTokenizer.train([CAPTION], 100), build_transform("published", SIDE), 25
    )
    ours = TrainLoader(samples, batch_size=BATCH, workers=workers, seed=0)
    plain = DataLoader(
        PlainPairs(paths), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(rounds + 1):
        for name, epoch in (("plain", iter(plain)), ("ours", ours.batches(number))):
            rate = images_per_second(epoch, count)
            if number:  # the first round starts the workers
                rates[name].append(rate)
    ours.close()
    ratios = [a / b for a, b in zip(rates["ours"], rates["plain"], strict=True)]
    return {
        "file_kilobytes": round(sum(path.stat().st_size for path in paths) / count / 1000),
        "ours_images_per_s": round(statistics.median(rates["ours"]), 1),
        "plain_images_per_s": round(statistics.median(rates["plain"]), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"workers": arguments.workers, **environment()}
    with tempfile.TemporaryDirectory() as temporary:
        for name, (size, count, wanted) in SIZES.items():
            figures[name] = compare(Path(temporary, name), size, count, arguments.workers, arguments.rounds)
            figures[name]["wanted"] = wanted
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    write(figures, arguments.out)


if __name__ == "__main__":
    main()
