"""What one process does of an evaluation that several share: whole batches, so that each computes what one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tcl.errors import TclError, reason_of
from tcl.machine.signals import Stopped

if TYPE_CHECKING:
    from tcl.distributed.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This process's place among those that evaluate together.

    Batches are dealt out whole: every image is computed in the same batch as by one process, so the results are equal
    bit for bit wherever a batch gives the same twice.

    Args:
        rank: of this process.
        world_size: processes.
        collect: gives the plain values of all processes, by rank; every process calls it equally often.
        while_wanted: around what this process does by itself; may end it by `Stopped`.
    """

    rank: int = 0
    world_size: int = 1
    collect: Callable[[Any], list[Any]] = lambda value: [value]
    while_wanted: Callable[[], AbstractContextManager[None]] = nullcontext

    @classmethod
    def of(cls, world: World, while_wanted: Callable[[], AbstractContextManager[None]] = nullcontext) -> Share:
        """That of a process of a run; see `Share`."""
        return cls(world.rank, world.size, world.collect, while_wanted)

    def rows(self, total: int, batch_size: int, rank: int | None = None) -> list[int]:
        """Its rows of `total`: every `world_size`-th batch, ascending.

        Args:
            total: rows in all.
            batch_size: rows of a batch; the last one may have fewer.
            rank: of another process, whose rows they are then.
        """
        own = self.rank if rank is None else rank
        return [row for row in range(total) if row // batch_size % self.world_size == own]

    @contextmanager
    def agree(self) -> Iterator[None]:
        """What fails or is stopped inside it in one process ends in all of them, for the same reason.

        Raises:
            TclError: of the first process that failed.
            Stopped: that one was told to end.
        """
        if self.world_size == 1:
            with self.while_wanted():
                yield
            return
        failure, cause = None, None
        try:
            with self.while_wanted():
                yield
        except (Exception, Stopped) as error:
            failure, cause = self._plain(error), error
        failures = [told for told in self.collect(failure) if told]
        if failures:
            kind, *arguments = failures[0]
            raise kind(*arguments) from cause

    def _plain(self, error: BaseException) -> tuple[Any, ...]:
        """An error as what travels between processes: its kind and arguments."""
        if isinstance(error, Stopped):
            return (Stopped,)
        if not isinstance(error, TclError):
            return TclError, f"process {self.rank}: {type(error).__name__}: {reason_of(error)}"
        # A subclass with arguments of its own becomes its parent.
        kind = next(each for each in type(error).__mro__ if "__init__" not in vars(each) or each is TclError)
        return kind, error.message, error.hint

    def join_rows(
        self, found: dict[int, T], unread: list[tuple[int, str, str]]
    ) -> tuple[dict[int, T], list[tuple[int, str, str]]]:
        """What all processes found, by row, and what none could read, in the order of the rows.

        Args:
            found: by row, of this process.
            unread: row, image, and why it cannot be read.
        """
        parts = self.collect((found, unread))
        every = {row: value for of_one, _ in parts for row, value in of_one.items()}
        missing = sorted((entry for _, of_one in parts for entry in of_one), key=lambda entry: entry[0])
        return {row: every[row] for row in sorted(every)}, missing

    def progress(self, told: Callable[[int], None], total: int) -> Callable[[int], None]:
        """Progress of all processes as this one guesses it from its own: the others are about as far.

        Args:
            told: the progress of all, out of `total`.
            total: rows in all.
        """
        done = 0

        def advance(number: int) -> None:
            nonlocal done
            step = min(number * self.world_size, total - done)
            done += step
            told(step)

        return advance


ALONE = Share()
