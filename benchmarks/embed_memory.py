"""Peak memory of `embed` over many images against few: it must not grow with them.

python benchmarks/embed_memory.py [--few 5000] [--many 50000] [--quick] [--out FILE]

Each job runs in a process of its own, from a folder of tiny PNGs, with an encoder that costs next to nothing. What is
compared is the largest resident memory of the process, in MB; --quick takes a tenth of the images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.synthetic import ProjectionEncoder, make_images

WANTED = 100  # MB


def job(images: Path, out: Path) -> None:
    """One job; prints its figures as JSON."""
    from tcl.data.inputs.listing import list_inputs
    from tcl.embedding.run import embed

    started = time.perf_counter()
    embed(list_inputs(str(images)), ProjectionEncoder(), out, workers=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": round(peak, 1), "seconds": round(time.perf_counter() - started, 1)}))


def measure(few: int, many: int, suffix: str = ".npy") -> dict[str, Any]:
    """Both jobs, the few images a part of the many."""
    figures: dict[str, Any] = {"few": few, "many": many}
    with tempfile.TemporaryDirectory() as folder:
        every = make_images(Path(folder, "many"), many, side=8)
        some = Path(folder, "few")
        some.mkdir()
        for number in range(few):
            os.link(every / f"{number}.png", some / f"{number}.png")
        for name, images in (("few", some), ("many", every)):
            command = [sys.executable, __file__, "--job", str(images), str(Path(folder, name + suffix))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures |= {f"{name}_{key}": value for key, value in json.loads(done.stdout).items()}
    figures["difference_mb"] = round(figures["many_peak_mb"] - figures["few_peak_mb"], 1)
    return figures | {"wanted_below_mb": WANTED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=5000)
    parser.add_argument("--many", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(*map(Path, arguments.job))
        return
    share = 10 if arguments.quick else 1
    figures = measure(arguments.few // share, arguments.many // share)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(figures["difference_mb"] >= WANTED)


if __name__ == "__main__":
    main()
