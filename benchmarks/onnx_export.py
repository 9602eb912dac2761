"""A bundle in ONNX Runtime against torch eager on a CPU, and what exporting costs; base size, random weights.

python benchmarks/onnx_export.py                   # both, at 256 pixels and 25 tokens
python benchmarks/onnx_export.py --only speed --threads 2 --rounds 7
python benchmarks/onnx_export.py --only cost --matcher --precision fp32,fp16,int8

Sides take turns, batch by batch, so that other work on the machine slows all of them; medians are compared. Cost is
measured in a process of its own, from the model folder to the verified bundle's graphs on disk, verification apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.report import environment, write
from export.bundle import build_bundle
from export.graphs.write import export_onnx
from tcl import TCL
from tcl.config.recipe import ModelConfig
from tcl.data.pairs.table import read_pairs
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer
from tcl.encoders.onnx import OnnxEncoder
from tcl.encoders.torch import TorchEncoder
from tcl.weights.files import hash_model

WANTED = {"image 1": (1.15, 1.7), "image 8": (1.08, 1.7), "text 1": (1.1, 1.8), "text 16": (1.1, 1.8)}
"""Times as fast as torch eager: float32, int8."""

COSINE = 0.99  # of int8, on average
EXPORT_SECONDS, EXPORT_GIBIBYTES = 90, 6
LENGTH = 25


def build(seed: int = 0) -> TCL:
    """ViT-B/16 and BERT-base as published, with random weights."""
    torch.manual_seed(seed)
    config = ModelConfig.model_validate({"pretrained": False, "max_length": LENGTH})
    model = TCL.from_config(config, 30522).eval()
    captions = (text for pair in read_pairs(["scenes:train:300"]) for text in pair.captions)
    model.processor = Processor(CaptionTokenizer.train(captions, 1000), config.image_shape, LENGTH)
    model.model_hash = hash_model(model)
    return model


def speed(threads: int, rounds: int, figures: dict[str, Any]) -> bool:
    """Print times of all sides; is each as many times as fast as torch as wanted, and int8 near enough?

    `figures` receives the ratios.
    """
    torch.set_num_threads(threads)
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        bundle = build_bundle(model, Path(folder) / "base", ["fp32", "int8"], matcher=False, check=False)
        sides: dict[str, Any] = {"torch": TorchEncoder(model)}
        sides |= {precision: OnnxEncoder(bundle.folder, precision) for precision in ("fp32", "int8")}
        return _compare(model, sides, threads, rounds, figures)


def _compare(model: TCL, sides: dict[str, Any], threads: int, rounds: int, figures: dict[str, Any]) -> bool:
    draw = np.random.default_rng(0)
    good = True
    print(f"{threads} threads, median of {rounds} rounds in turn")
    for case, wanted in WANTED.items():
        kind, batch = case.split()
        calls: dict[str, Callable[[], np.ndarray]] = {}
        if kind == "image":
            pixels = draw.integers(0, 256, (int(batch), 3, *model.processor.image_size), dtype=np.uint8)
            calls = {name: lambda side=side, x=pixels: side.encode_image(x) for name, side in sides.items()}
        else:
            ids = draw.integers(0, 30522, (int(batch), LENGTH))
            calls = {
                name: lambda side=side, x=ids: side.encode_text(x, np.ones_like(x)) for name, side in sides.items()
            }
        vectors = {name: call() for name, call in calls.items()}  # also warms up
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        ratios = [middle["torch"] / middle[name] for name in ("fp32", "int8")]
        cosine = float((vectors["torch"] * vectors["int8"]).sum(axis=1).mean())
        difference = float(np.abs(vectors["torch"] - vectors["fp32"]).max())
        print(
            f"{case:<8} torch {1e3 * middle['torch']:7.1f} ms  fp32 {1e3 * middle['fp32']:7.1f} ms x{ratios[0]:.2f} "
            f"(wanted {wanted[0]})  int8 {1e3 * middle['int8']:7.1f} ms x{ratios[1]:.2f} (wanted {wanted[1]})  "
            f"|fp32 - torch| {difference:.1e}  mean cosine of int8 {cosine:.4f}",
            flush=True,
        )
        near = cosine >= COSINE and difference <= 1e-5
        good &= near and all(ratio >= least for ratio, least in zip(ratios, wanted, strict=True))
        figures[case] = {
            "fp32": round(ratios[0], 2),
            "int8": round(ratios[1], 2),
            "wanted": wanted,
            "int8_mean_cosine": round(cosine, 4),
            "fp32_max_difference": difference,
        }
    return good


def cost(precisions: str, matcher: bool, figures: dict[str, Any]) -> bool:
    """Print seconds and peak memory of loading and exporting; are they as little as wanted? `figures` receives them."""
    with tempfile.TemporaryDirectory() as folder:
        build().save_pretrained(Path(folder) / "model")
        command = [sys.executable, __file__, "--measure", folder, "--precision", precisions, *["--matcher"] * matcher]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(
        f"export of {found['graphs']} in {precisions}: {found['seconds']:.1f} s, of which loading the model "
        f"{found['loading']:.1f} s; peak memory {found['gibibytes']:.1f} GiB; {found['megabytes']:.0f} MB on disk"
    )
    figures["cost"] = found | {"precisions": precisions}
    small = precisions == "fp32" and not matcher  # what the wanted figures are about
    return not small or (found["seconds"] <= EXPORT_SECONDS and found["gibibytes"] <= EXPORT_GIBIBYTES)


def measure(folder: Path, precisions: str, matcher: bool) -> None:
    """One export; runs in a process of its own."""
    started = time.perf_counter()
    model = TCL.from_pretrained(folder / "model")
    loaded = time.perf_counter()
    (folder / "graphs").mkdir()
    files = export_onnx(model, folder / "graphs", precisions.split(","), matcher=matcher)
    print(
        json.dumps(
            {
                "graphs": ", ".join(files),
                "loading": loaded - started,
                "seconds": time.perf_counter() - started,
                "gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "megabytes": sum(path.stat().st_size for path in (folder / "graphs").iterdir()) / 1e6,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "cost"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--matcher", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.precision, options.matcher)
        return
    figures: dict[str, Any] = {**environment(), "threads": options.threads}
    cheap = options.only == "speed" or cost(options.precision, options.matcher, figures)
    fast = options.only == "cost" or speed(options.threads, options.rounds, figures)
    if options.out:
        write(figures, options.out)
    if not cheap or not fast:
        sys.exit("export costs more than wanted" if not cheap else "not as fast, or not as near, as wanted")


if __name__ == "__main__":
    main()
