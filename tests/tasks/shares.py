"""Processes that share an evaluation, as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tcl.distributed.share import Share


def in_processes(world_size: int, work: Callable[[Share], Any]) -> list[Any]:
    """What `work` gives, or raises, in each of them, by rank."""
    barrier = threading.Barrier(world_size)
    told: list[Any] = [None] * world_size
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        def collect(value: Any) -> list[Any]:
            told[rank] = value
            barrier.wait()
            values = list(told)
            barrier.wait()
            return values

        try:
            results[rank] = work(Share(rank, world_size, collect))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
