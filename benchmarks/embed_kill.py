"""One embedding job, killed again and again at random: is the result the one of a job that was left alone?

python benchmarks/embed_kill.py [--images 2000] [--kills 50] [--lanes 2] [--processes 1] [--out FILE]

The job runs in a process of its own, with an encoder that takes a little time and notes each batch that it has
encoded. It gets SIGKILL after a random time, over and over; then it may finish. Compared are all files, byte by byte,
and how many batches were encoded more than once: at most one per lane, process and kill. With several processes, as for
several devices, it is their parent that is killed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.synthetic import ProjectionEncoder, make_images

BATCH = 8


def make_encoder(lanes: int, log: Path, seconds: float, device: str) -> ProjectionEncoder:
    """The encoder of a process."""
    return ProjectionEncoder(lanes=lanes, log=log, seconds=seconds)


def job(images: Path, out: Path, log: Path, lanes: int, processes: int, seconds: float) -> None:
    """What is killed: one job."""
    from tcl.data.inputs.listing import list_inputs
    from tcl.embedding.parts import Output
    from tcl.embedding.plan import Options
    from tcl.embedding.run import run_embedding

    run_embedding(
        list_inputs(str(images)),
        Output(out),
        Options(batch_size=BATCH, workers=2, dtype="int8"),
        partial(make_encoder, lanes, log, seconds),
        ["cpu"] * processes,
        begin=lambda facts, done, state: nullcontext(lambda count: None),
    )


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """The job in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "--job", *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder; a folder in it that was left behind counts too."""
    return {path.name: path.read_bytes() if path.is_file() else b"a folder" for path in sorted(folder.iterdir())}


def encoded(log: Path) -> int:
    """How many batches were encoded."""
    return log.stat().st_size if log.exists() else 0


def kill_often(
    folder: Path, images: int, kills: int, lanes: int = 2, processes: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Run the job undisturbed and disturbed.

    Args:
        folder: to work in.
        images: how many.
        kills: processes to kill.
        lanes: of the encoder.
        processes: that share the job.
        seed: of the times.

    Returns:
        figures; `identical` says whether all files are.
    """
    source = make_images(folder / "images", images)
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    job(source, folder / "whole" / "v.npy", folder / "whole.log", lanes, 1, 0.0)
    batches = encoded(folder / "whole.log")
    out, log = folder / "killed" / "v.npy", folder / "killed.log"
    # So slow that the kills spread over the whole job, and a process does more than it takes to start.
    seconds = 0.02
    share = batches / (kills + 1) / (lanes * processes) * seconds
    arguments = (source, out, log, lanes, processes, seconds)
    draw, landed, starts = random.Random(seed), 0, 0
    while landed < kills and not out.exists():
        process = start(*arguments)
        starts += 1
        before = encoded(log)
        while process.poll() is None and encoded(log) == before and draw.random() > 0.0002:  # now and then even earlier
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 2 * share))
        if process.poll() is None:
            process.kill()
            landed += 1
        process.wait()
    for _ in range(2):  # the job is over when it says so; once it was, it refuses to do it again
        starts += 1
        if start(*arguments).wait() == 0 or out.exists():
            break
    return {
        "images": images,
        "batches": batches,
        "lanes": lanes,
        "processes": processes,
        "kills": landed,
        "starts": starts,
        "encoded_twice": encoded(log) - batches,
        "allowed_twice": landed * lanes * processes,
        "identical": files(folder / "whole") == files(folder / "killed"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--job", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        images, out, log, lanes, processes, seconds = arguments.job
        job(Path(images), Path(out), Path(log), int(lanes), int(processes), float(seconds))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = kill_often(
            Path(folder), arguments.images, arguments.kills, arguments.lanes, arguments.processes, arguments.seed
        )
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(not (figures["identical"] and figures["encoded_twice"] <= figures["allowed_twice"]))


if __name__ == "__main__":
    main()
