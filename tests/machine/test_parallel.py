"""Work in several processes: the same results in the same order, and nothing that outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from operator import mul
from pathlib import Path

import pytest

from tcl.errors import TclError
from tcl.machine.processes import available_cores, ordered_map

REPOSITORY = Path(__file__).parents[2]
DIES = """
import os, signal, sys
from functools import partial
from tcl.machine.processes import ordered_map

if __name__ == "__main__":
    for _, worker in ordered_map(partial(partial, os.getpgid), [0] * 40, workers=2):
        children = open(f"/proc/self/task/{os.getpid()}/children").read()
        print(children, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    results = ordered_map(partial(partial, mul, 3), iter(range(20)), workers)
    assert list(results) == [(item, 3 * item) for item in range(20)]


def test_items_are_read_a_few_ahead_only() -> None:
    taken: list[int] = []
    results = ordered_map(partial(partial, mul, 3), (taken.append(n) or n for n in range(1000)), workers=2)
    assert next(results) == (0, 0)
    assert len(taken) <= 10
    results.close()


def test_a_worker_that_is_killed_ends_the_work_with_one_line() -> None:
    with pytest.raises(TclError, match="a worker process was killed") as caught:
        list(ordered_map(partial(partial, os._exit), [1] * 4, workers=2))
    assert "--workers" in (caught.value.hint or "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for child processes")
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    children = [int(child) for child in done.stdout.split()]
    assert done.returncode == -9 and len(children) >= 2
    while any(_runs(child) for child in children):  # one that is left behind ends the test by pytest's own time-out
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie has ended, and waits for someone to ask how


def test_at_least_one_core() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
