"""Processes of one run on this machine, as `torchrun` starts them, in a third of its time.

    python ranks.py COUNT SCRIPT [ARGUMENT ...]

One process imports what all of them need and forks them. Nothing is restarted, and none is ended for another's sake:
what `torchrun` does about a lost process is tested with `torchrun`.
"""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_ranks(count: int, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script with its arguments in `count` processes; the exit code is that of the first that failed."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    line = [sys.executable, __file__, str(count), *command]
    return subprocess.run(line, env=settings, text=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:

    count, script = int(sys.argv[1]), sys.argv[2]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    started = []
    for rank in range(count):
        started.append(os.fork())
        if not started[-1]:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.argv = sys.argv[2:]
            runpy.run_path(script, run_name="__main__")
            return
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
    sys.exit(next((code for code in codes if code), 0))


if __name__ == "__main__":
    main()
