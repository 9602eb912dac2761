"""How much memory there is, and keeping what a process has freed.

Memory is looked for on a GPU, in the machine, and in the control groups that a container or scheduler sets. Training on
a CPU keeps the memory it frees, as the allocator of a GPU does.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARE = {"cuda": 0.9, "cpu": 0.7}  # to plan with; the rest is for fragmentation, and other processes


def memory_budget(device: torch.device, processes: int = 1) -> float:
    """Bytes that a run may plan with: a share of `available_memory`."""
    return SHARE["cuda" if device.type == "cuda" else "cpu"] * available_memory(device, processes)


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process has on `device` or could still get.

    Args:
        device: a GPU, or the CPU.
        processes: of this run on this machine, which share the CPU's memory.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return resident_memory() + free_memory() // processes


def resident_memory() -> int:
    """Bytes of RAM that this process has."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of RAM that can still be had: what the kernel has left, or less where a control group allows less.

    Args:
        root: where `proc` and `sys` are.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return max(min([available, *_free_in_groups(root)]), 0)


def _free_in_groups(root: Path) -> Iterator[int]:
    """What each control group that holds this process leaves, version 1 and 2, from the innermost out."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = (
                "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        limit_name, usage_name, cache_name = names
        inner = Path(path.strip("/"))
        for group in [inner, *inner.parents]:  # in a container only the outermost may be visible
            folder = root / base / group
            try:
                limit = (folder / limit_name).read_text(encoding="ascii").strip()
                usage = int((folder / usage_name).read_text(encoding="ascii"))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            except OSError:
                continue
            if limit != "max":
                yield int(limit) - usage + int(stat.get(cache_name, 0))  # cached files make room when asked


def format_bytes(number: float) -> str:
    """`512 B`, `1.5 MB`, `2.0 TB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


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
