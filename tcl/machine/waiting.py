"""How long OpenMP's threads spin for their next piece of work before they sleep.

Threads of torch meet after every layer. One that waits spins, by default for about a millisecond (GNU) or 200 (LLVM and
Intel), which is fastest on a quiet machine. On a busy one it takes the core from the thread that everyone waits for,
so that two trainings side by side run at a fraction of half the speed each. A shorter spin takes less from others. How
short it has to be is not settled: with this one, two demo trainings on two cores still ran at a fifth of the speed of
one alone. `benchmarks/busy.py` compares ways of waiting.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

GIVEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = 10_000  # of GNU's loop, which by default spins 300,000 times
MILLISECONDS = 1  # of LLVM and Intel


def wait_politely(environment: MutableMapping[str, str] = os.environ) -> None:
    """Shorten the spinning of this process and of those that it starts, unless the user has said how to wait.

    OpenMP reads this when it is loaded, so it comes before torch is imported.
    """
    if not any(name in environment for name in GIVEN):
        environment.update({"GOMP_SPINCOUNT": str(SPINS), "KMP_BLOCKTIME": str(MILLISECONDS)})
