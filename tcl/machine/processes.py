"""The same function over many items in several processes, with the results in order."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from tcl.errors import TclError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items in flight per process: enough to keep it busy, few enough for flat memory

_work: Callable[[Any], Any]  # of a worker process


def available_cores() -> int:
    """The cores that this process may use; a container often has fewer than its machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result], None, None]:
    """Call `make()(item)` for every item; the results do not depend on the number of processes.

    Args:
        make: builds the function, once in each process; a pickle of it is sent there.
        items: read only a few ahead of the results.
        workers: processes; 1 works in this one.

    Yields:
        each item with its result, in the order of the items.

    Raises:
        TclError: a worker process was killed.
    """
    if workers <= 1:
        work = make()
        yield from ((item, work(item)) for item in items)
        return
    # Spawned, not forked: the tokenizers library and Arrow have threads that a fork would not survive.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(make,))
    pending: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(_call, item)))
            if len(pending) >= AHEAD * workers:
                yield _take(pending)
        while pending:
            yield _take(pending)
    except BrokenProcessPool:
        raise TclError(
            "a worker process was killed: the machine ran out of memory, or an image crashed its decoder",
            hint="try fewer --workers",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _take(pending: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = pending.popleft()
    return item, future.result()


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    begin_worker()
    _work = make()


def begin_worker(on_interrupt: signal.Handlers = signal.SIG_IGN) -> None:
    """First in a spawned process: settle what Ctrl-C does there, and end it when its parent is gone.

    Args:
        on_interrupt: the terminal sends Ctrl-C to everyone; as a rule the parent decides.
    """
    signal.signal(signal.SIGINT, on_interrupt)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker waits for its next item forever, even when the one who would send it was killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(item: Any) -> Any:
    return _work(item)
