"""One job on several devices: a process for each, which takes the next piece of work when it is free.

The parent opens the job, hands out work and shows progress; the processes write vectors and journals by themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from tcl.data.inputs.listing import Inputs
from tcl.embedding.pipeline import Clock, Link
from tcl.embedding.plan import EncoderFacts
from tcl.errors import CheckpointError, DataError, TclError, UsageError
from tcl.machine.devices import use_device
from tcl.machine.processes import begin_worker

if TYPE_CHECKING:
    from tcl.encoders.base import Encoder

MakeEncoder = Callable[[str], "Encoder"]  # takes `cpu` or `cuda`; can be pickled
ERRORS = (UsageError, DataError, CheckpointError, TclError)  # as which an error of a process is raised again
PATIENCE = 10.0  # seconds for processes to end by themselves


class Failure(NamedTuple):
    """An error of another process, as it travels.

    Attributes:
        kind: name of its class, of those in `ERRORS`.
        message: as of a `TclError`; empty where there was none.
        hint: likewise.
    """

    kind: str = ""
    message: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: TclError) -> Failure:
        """From the error."""
        kind = next(kind for kind in ERRORS if isinstance(error, kind))
        return cls(kind.__name__, error.message, error.hint or "")

    def throw(self) -> NoReturn:
        """Raise it again."""
        kind = next(kind for kind in ERRORS if kind.__name__ == self.kind)
        raise kind(self.message, self.hint or None)


class Task(Protocol):
    """What a process does; can be pickled."""

    def run(self, worker: int, encoder: Encoder, inputs: Inputs, work: Iterator[Any], link: Link) -> Clock:
        """Do pieces of work for as long as there are any.

        Args:
            worker: number of the process, from 0.
            encoder: of its device.
            inputs: of the job.
            work: pieces, each claimed when it is taken from the iterator.
            link: for progress and messages.
        """
        ...


class _Pipe:
    """A process's link to its parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # a pipe takes one message at a time

    def send(self, kind: str, value: Any = None) -> None:
        with self._lock:
            self._connection.send((kind, value))

    def progress(self, count: int) -> None:
        self.send("done", count)

    def say(self, text: str) -> None:
        self.send("say", text)

    def work(self) -> Iterator[Any]:
        """Pieces of work until the parent has no more."""
        while True:
            self.send("next")
            piece = self._connection.recv()
            if piece is None:
                return
            yield piece


@dataclass
class _Worker:
    """A process as the parent sees it."""

    device: str
    process: Any
    connection: Connection
    facts: EncoderFacts | None = None
    clock: Clock | None = None


class Workers:
    """Processes that each hold an encoder; they end with the `with` block, however it ends.

    Args:
        make_encoder: builds an encoder on a device; a pickle of it is sent to each process.
        devices: from `parse_devices`; two or more.
        examine: what the job has to know of an encoder; can be pickled.

    Raises:
        TclError: what an encoder raised.
    """

    def __init__(
        self, make_encoder: MakeEncoder, devices: list[str], examine: Callable[[Encoder], EncoderFacts]
    ) -> None:
        # Spawned, not forked: CUDA, the tokenizers library and Arrow have threads that a fork would not survive.
        context = get_context("spawn")
        self.workers: list[_Worker] = []
        try:
            for device in devices:
                mine, its = context.Pipe()
                process = context.Process(target=_serve, args=(its, make_encoder, device, examine), daemon=True)
                process.start()
                its.close()  # so that the end of the process is the end of the pipe
                self.workers.append(_Worker(device, process, mine))
            self.facts = self._agree()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _agree(self) -> EncoderFacts:
        """Wait for every encoder; all have to be the same."""
        for worker in self.workers:
            try:
                kind, value = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                raise TclError(f"the process of {worker.device} ended while it opened the model") from None
            if kind == "failed":
                value.throw()
            worker.facts = value
        first = self.workers[0]
        for other in self.workers[1:]:
            if other.facts != first.facts:
                raise unequal(first.device, other.device)
        assert first.facts is not None
        return first.facts

    def run(
        self,
        task: Task,
        inputs: Path,
        work: Iterator[Any],
        progress: Callable[[int], object] = lambda n: None,
        say: Callable[[str], object] = lambda text: None,
    ) -> Clock:
        """Have the work done; once.

        A process that dies loses what it had claimed; the others do the rest.

        Raises:
            TclError: a process failed or died; what was done stays.
        """
        lost: list[str] = []
        failure: Failure | None = None
        running: dict[Connection, _Worker] = {}
        for number, worker in enumerate(self.workers):
            try:
                worker.connection.send((task, inputs, number))
                running[worker.connection] = worker
            except OSError:  # it has died since it opened the model
                lost.append(worker.device)
        while running:
            for connection in wait(list(running)):
                worker = running[connection]  # type: ignore[index]
                try:
                    kind, value = worker.connection.recv()
                    if kind == "next":
                        worker.connection.send(None if failure else next(work, None))
                except (EOFError, OSError):
                    lost.append(worker.device)
                    del running[worker.connection]
                    continue
                if kind == "done":
                    progress(value)
                elif kind == "say":
                    say(value)
                elif kind == "finished":
                    worker.clock = value
                    del running[worker.connection]
                elif kind == "failed":
                    failure = failure or value
                    del running[worker.connection]
        if failure:
            failure.throw()
        if lost:
            raise TclError(
                f"the process of {', '.join(lost)} was killed: the machine ran out of memory, or an input crashed it",
                hint="what was done stays, and the same command goes on; fewer --workers need less memory",
            )
        return sum((worker.clock for worker in self.workers if worker.clock), Clock())

    def close(self) -> None:
        """End the processes; their job survives that at any moment."""
        for worker in self.workers:
            worker.connection.close()  # one that has finished sees it and leaves
        for worker in self.workers:
            if worker.clock is not None:
                worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()


def unequal(first: str, other: str) -> UsageError:
    """The error of two devices whose encoders differ."""
    return UsageError(
        f"{first} and {other} do not compute alike, so rows would depend on who was faster",
        hint="name devices of one kind by --devices",
    )


def _serve(
    connection: Connection, make_encoder: MakeEncoder, device: str, examine: Callable[[Encoder], EncoderFacts]
) -> None:
    """The life of a process: open the encoder, say what it is, do the task."""
    begin_worker()
    pipe = _Pipe(connection)
    try:
        encoder = make_encoder(use_device(device))
        connection.send(("facts", examine(encoder)))
        task, path, number = connection.recv()
        clock = task.run(number, encoder, Inputs.open(path), pipe.work(), Link(pipe.progress, pipe.say))
        pipe.send("finished", clock)
    except (EOFError, BrokenPipeError):  # the parent wants no more
        return
    except TclError as error:
        pipe.send("failed", Failure.of(error))
    except Exception as error:
        text = f"{device}: {type(error).__name__}: {' '.join(str(error).split())}"
        pipe.send("failed", Failure("TclError", text, "one device alone, with --debug, shows where"))
