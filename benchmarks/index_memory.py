"""Memory and speed of the pair index: building it, and one pass of random access in several workers.

python benchmarks/index_memory.py [--rows 1000000] [--workers 2] [--folder FOLDER]

Writes a JSONL of that many rows in a temporary folder (about 200 bytes a row, as much again for the index), builds its
index in a process of its own, opens it again from the cache, then forks workers that each visit all rows once, in
random order. What counts of a worker is the memory that it alone has written to: copies, not pages of the mapped file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from tcl.data.pairs.table import PairIndex, read_pairs

WORDS = (
    "a",
    "the",
    "dog",
    "cat",
    "red",
    "runs",
    "on",
    "grass",
    "behind",
    "house",
    "with",
    "child",
    "holding",
    "umbrella",
)


def write_pairs(path: Path, rows: int) -> None:
    """Rows of about 200 bytes: a path, a caption of 8 to 20 words, an id and columns that nobody reads."""
    draw = random.Random(0)
    captions = [" ".join(draw.choices(WORDS, k=draw.randint(8, 20))) for _ in range(10_000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = {
                "image": f"images/{i // 10_000:05d}/{i:09d}.jpg",
                "caption": f"{captions[i % 10_000]} {i}",
                "width": 640,
                "height": 480,
                "split": "train",
            }
            file.write(json.dumps(row) + "\n")


def megabytes(field: str) -> float:
    """A line of the memory summary of this process, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def build(path: str) -> None:
    """Index the file, say how long it took and what memory it needed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    index = read_pairs([path])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"index {len(index):,} rows: {seconds:.1f} s, {len(index) / seconds:,.0f} rows/s")
    print(f"  peak resident memory {peak:,.0f} MB, of which {before:,.0f} MB before it began")


def visit(index: PairIndex, worker: int) -> str:
    """One pass over all rows in random order."""
    order = np.random.default_rng(worker).permutation(len(index)).astype(np.int32)
    for row in order[:1000]:
        index[row]
    before, characters = megabytes("Private_Dirty"), 0
    started = time.perf_counter()
    for row in order:
        characters += len(index[row].captions[0])
    seconds = time.perf_counter() - started
    after = megabytes("Private_Dirty")
    return (
        f"  worker {worker}: own memory {before:.0f} -> {after:.0f} MB ({(after / before - 1) * 100:+.1f} %), "
        f"proportional {megabytes('Pss:'):,.0f} MB, resident with the shared file {megabytes('Rss'):,.0f} MB, "
        f"{seconds / len(index) * 1e6:.1f} us a row"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write; by default the folder for temporary files")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["TCL_CACHE"] = str(Path(folder, "cache"))
        source = Path(folder, "pairs.jsonl")
        write_pairs(source, arguments.rows)
        print(f"{source.stat().st_size / 1e6:,.0f} MB of JSONL", flush=True)
        subprocess.run([sys.executable, __file__, "--build", str(source)], check=True)
        started = time.perf_counter()
        index = read_pairs([str(source)])
        print(f"open again: {(time.perf_counter() - started) * 1e3:.0f} ms")
        print(f"one pass of {arguments.workers} workers at the same time", flush=True)
        with get_context("fork").Pool(arguments.workers) as pool:
            for line in pool.starmap(visit, [(index, worker) for worker in range(arguments.workers)], chunksize=1):
                print(line)


if __name__ == "__main__":
    main()
