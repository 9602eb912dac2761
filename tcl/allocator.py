"""Training on a CPU keeps the memory it frees, as the allocator of a GPU does. Imports no torch."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_NEVER = -1
_LARGEST = 1 << 30  # bytes; what is larger than this still goes back to the system at once


def keep_freed_memory() -> bool:
    """Have this process reuse large blocks of memory instead of giving them back to the system.

    By default glibc returns what a step frees and asks for it again in the next one, and the system clears every page
    of it anew: in a pre-training step of base size up to a tenth of the CPU time (benchmarks/train_step.py). Processes
    forked later inherit the setting.

    Returns:
        whether it was done; other C libraries than glibc have no such setting.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))
