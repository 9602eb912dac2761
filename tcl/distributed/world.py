"""One run in several processes, as `torchrun` starts them. In a single process everything here does nothing.

Letters: W processes, B samples of one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tcl.distributed.launch import launched, starts
from tcl.errors import TclError, UsageError
from tcl.machine.devices import choose_device

TIMEOUT = timedelta(days=1)
"""How long the processes wait for each other: longer than the first one indexes, or any validates its share. A dead one
is noticed at once, however long this is."""


class LostPeerError(TclError):
    """Another process of the run has ended, or does not answer."""


@dataclass(frozen=True)
class World:
    """Where this process stands among those of its run.

    Attributes:
        device: where it computes.
        rank: its number; 0 writes the files and speaks for all.
        size: number of processes, W.
    """

    device: str = "cpu"
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Is this the process that writes?"""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [B, ...] of every process in the order of their ranks [W * B, ...], without gradient."""
        if self.size == 1:
            return rows
        rows = rows.contiguous()
        gathered = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows)
        return gathered

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def largest(self, value: Tensor) -> Tensor:
        """The largest value of all processes."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def collect(self, value: Any) -> list[Any]:
        """The plain values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The plain value of the first process, for all; what the others give is not looked at."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Inside it, the first process goes ahead and the others follow, as where one fills a cache for all.

        Raises:
            LostPeerError: in the others, where the first has failed.
        """
        if self.size > 1 and not self.is_main and not self.from_main(None):
            raise LostPeerError("the first process of the run has failed", hint="its own message says why")
        done = False
        try:
            yield
            done = True
        finally:
            if self.size > 1 and self.is_main:
                self.from_main(done)


class Agreement:
    """A wish that all processes follow at the same step, without any of them waiting for the others.

    The answer is the wish of the step before: by then every process has spoken.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: tuple[Any, Tensor] | None = None

    def __call__(self, wish: int) -> int:
        """Say what this process wishes, 0 for nothing; returns the greatest wish that all know of."""
        if self._world.size == 1:
            return wish
        answer = self.close()
        value = torch.tensor([wish])
        self._asked = dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True), value
        return answer

    def close(self) -> int:
        """Wait for the answer that is still under way."""
        if self._asked is None:
            return 0
        work, value = self._asked
        self._asked = None
        work.wait()
        return int(value)


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """This process's place in the run; inside it, the processes can talk to each other.

    Raises:
        UsageError: there is no such device, or fewer GPUs than processes on this machine.
        LostPeerError: another process ended while this one was waiting for it, or let it wait longer than `TIMEOUT`.
    """
    if not launched():
        yield World(choose_device(device))
        return
    device = choose_device(device, one_of_several=True)
    backend = "gloo"
    if device == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} of this machine has no GPU: torch sees {torch.cuda.device_count()}",
                hint="start as many processes as there are GPUs: torchrun --nproc-per-node gpu",
            )
        torch.cuda.set_device(local_rank)
        device, backend = f"cuda:{local_rank}", "cpu:gloo,cuda:nccl"
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # torchrun keeps its store over a restart, and with it the addresses of the processes that have ended.
    store = dist.PrefixStore(f"start-{starts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(device, dist.get_rank(), dist.get_world_size())
    try:
        yield world
    except (dist.DistError, RuntimeError) as error:
        lost = _lost_peer(world, error)
        if lost is None:
            raise
        raise lost from error
    # Not after a failure: NCCL would wait for the others here, who wait for this process, and nobody would hear why.
    dist.destroy_process_group()


def _lost_peer(world: World, error: Exception) -> LostPeerError | None:
    """What an error says about the other processes, if it is one of an exchange with them."""
    # Gloo has no exception of its own; these are the words of its and NCCL's messages.
    words, text = ("closed by peer", "reset by peer", "gloo", "nccl", "broken pipe"), str(error).lower()
    if not isinstance(error, dist.DistError) and not any(word in text for word in words):
        return None
    own = f"process {world.rank} of {world.size}"
    if "timed out" in text or "timeout" in text:
        return LostPeerError(
            f"{own}: no word from another process of this run for {TIMEOUT.total_seconds() / 3600:.3g} hours",
            hint="it hangs, or has validated its share for that long: then use fewer --val rows or a smaller "
            "train.eval_top_k. Continue from the last checkpoint with --resume",
        )
    return LostPeerError(
        f"{own}: another process of this run has ended, so this one ends too",
        hint="the last checkpoint is intact: continue with --resume, or start with torchrun --max-restarts",
    )
