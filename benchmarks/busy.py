"""What becomes of training on a busy machine: two side by side, each against one alone, by how OpenMP's threads wait.

    python benchmarks/busy.py [--steps 120] [--repeats 3] [--out FILE]

Each training is `tcl pretrain demo` in a process of its own. Ways of waiting: `active` is OpenMP's own default, which
spins long; `ours` is what the command sets; `passive` sleeps at once; others are `GOMP_SPINCOUNT`. Wanted of `ours`:
alone within 3 % of `active`, and side by side at least 40 % each of what it does alone. Needs a machine that does
nothing else; about two minutes for each way and repetition on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tcl.machine.waiting import GIVEN

WAYS = {
    "active": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "ours": {},
    "1000 spins": {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"},
    "50000 spins": {"GOMP_SPINCOUNT": "50000", "KMP_BLOCKTIME": "1"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
WARM_UP = 3  # lines of the log that do not count


def start(run: Path, steps: int, way: dict[str, str]) -> subprocess.Popen[bytes]:
    """One training, waiting this way."""
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN} | way
    settings = [f"train.steps={steps}", "train.log_every=10", "train.eval_every=99999", "train.checkpoint_every=99999"]
    command = [sys.executable, "-m", "tcl_cli", "pretrain", "demo", *settings, "data.val=[]", "--out", str(run)]
    return subprocess.Popen(command, env=environment, cwd=run.parent, stderr=subprocess.PIPE)


def speeds(number: int, steps: int, way: dict[str, str]) -> list[float]:
    """Samples per second of so many trainings at once: medians of their logs, and while all of them ran."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(place) / "run" for place in range(number)]
        for run in runs:
            run.parent.mkdir()  # each has a working folder of its own, where the demo leaves images
        for process in [start(run, steps, way) for run in runs]:
            _, told = process.communicate()
            if process.returncode:
                sys.exit(told.decode())
        found = []
        for run in runs:
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            rates = [record["samples_per_second"] for record in records if "samples_per_second" in record]
            found.append(median(rates[WARM_UP:-1]))  # the last ones may have had the machine to themselves
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    alone: dict[str, list[float]] = {name: [] for name in options.ways}
    beside: dict[str, list[float]] = {name: [] for name in options.ways}
    for _ in range(options.repeats):  # in turn, so that what the machine does besides hits all alike
        for name in options.ways:
            alone[name] += speeds(1, options.steps, WAYS[name])
            beside[name] += speeds(2, options.steps, WAYS[name])
    figures = {
        name: {
            "alone": round(median(alone[name]), 2),
            "each_of_two": round(min(beside[name]), 2),
            "share_of_alone": round(min(beside[name]) / median(alone[name]), 3),
        }
        for name in options.ways
    }
    if "active" in figures:
        for name in options.ways:
            figures[name]["alone_against_active"] = round(figures[name]["alone"] / figures["active"]["alone"], 3)
    text = json.dumps({"cores": len(os.sched_getaffinity(0)), "ways": figures}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
