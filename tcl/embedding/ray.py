"""The parts of a folder on a Ray cluster: each row of a Ray dataset is a part, each actor has an encoder.

All machines have to see the folder, and the images under the same names. A part that was finished is not computed
again; one that an actor was killed in goes on where it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl.data.inputs.listing import Inputs
from tcl.data.tokenizer import UnknownWords
from tcl.embedding.pipeline import Clock, Link
from tcl.embedding.plan import EncoderFacts
from tcl.embedding.workers import Failure, MakeEncoder, Task, unequal
from tcl.errors import MissingExtraError, TclError, UsageError, reason_of

if TYPE_CHECKING:
    from tcl.encoders.base import Encoder


class RayWorkers:
    """Actors on a Ray cluster, with the methods of `tcl.embedding.workers.Workers`.

    Args:
        make_encoder: builds an encoder on a device.
        devices: one name per actor; `auto` alone for one actor per GPU, or per machine where there is none.
        examine: what the job has to know of an encoder.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: there is no cluster where `$RAY_ADDRESS` says, or not enough GPUs in it.
        TclError: what the encoder raised.
    """

    def __init__(
        self, make_encoder: MakeEncoder, devices: list[str], examine: Callable[[Encoder], EncoderFacts]
    ) -> None:
        if find_spec("ray") is None or find_spec("pandas") is None:
            raise MissingExtraError("ray", "ray")
        import ray

        self._owned = not ray.is_initialized()
        if self._owned:
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"no Ray cluster: {reason_of(error)}", hint="check RAY_ADDRESS, or unset it"
                ) from error
        try:
            self._make_encoder, self._examine = partial(_make_in, Path.cwd(), make_encoder), examine
            self.actors, self._device = self._place(devices)
            self._gpus = 1 if self._device == "cuda" else 0
            remote = ray.remote(num_cpus=1, num_gpus=self._gpus)(_examine)
            with _lost_actors():
                outcome = ray.get(remote.remote(self._make_encoder, self._device, examine))
            if isinstance(outcome, Failure):
                outcome.throw()
            self.facts: EncoderFacts = outcome
        except BaseException:
            self.close()
            raise

    def _place(self, devices: list[str]) -> tuple[int, str]:
        """How many actors, and on what."""
        import ray

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if devices == ["auto"]:
            return (gpus, "cuda") if gpus else (sum(bool(node["Alive"]) for node in ray.nodes()), "cpu")
        kinds = {device.partition(":")[0] for device in devices}
        if len(kinds) > 1:
            raise UsageError(f"{' and '.join(sorted(kinds))} do not compute alike", hint="name devices of one kind")
        kind = kinds.pop()
        available = gpus if kind == "cuda" else int(resources.get("CPU", 0))
        if len(devices) > available:
            raise UsageError(f"the Ray cluster has {available} {kind} devices, not {len(devices)}")
        return len(devices), kind

    def run(
        self,
        task: Task,
        inputs: Path,
        work: Iterator[Any],
        progress: Callable[[int], object] = lambda n: None,
        say: Callable[[str], object] = lambda text: None,
    ) -> Clock:
        """Have the parts done.

        Raises:
            TclError: an actor failed; what was done stays.
        """
        import ray

        rows = [{"part": part} for part in work]
        if not rows:
            return Clock()
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is shown by the caller
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _PartActor,  # a class is called once per actor, with the arguments below
            fn_constructor_args=(
                partial(_examined, self._make_encoder, self._device, self._examine, self.facts),
                task,
                str(inputs.absolute()),
            ),
            compute=ray.data.ActorPoolStrategy(size=min(self.actors, len(rows))),
            num_cpus=1,
            num_gpus=self._gpus,
        )
        clock, failure = Clock(), Failure()
        with _lost_actors():
            for row in dataset.iter_rows():
                for text in row["said"]:
                    say(text)
                failure = failure if failure.message else Failure(row["kind"], row["message"], row["hint"])
                unknown = UnknownWords(int(row["texts"]), int(row["some"]), int(row["alone"]), row["example"])
                clock += Clock(int(row["rows"]), row["decode"], row["encode"], row["write"], unknown)
                progress(int(row["done"]))
        if failure.message:
            failure.throw()
        return clock

    def close(self) -> None:
        """Leave the cluster, and end it where it was started here."""
        import ray

        if self._owned and ray.is_initialized():
            ray.shutdown()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _make_in(folder: Path, make_encoder: MakeEncoder, device: str) -> Encoder:
    """Paths are the ones of the command, relative ones too."""
    os.chdir(folder)
    return make_encoder(device)


class _PartActor:
    """Holds an encoder and does one part after the other."""

    def __init__(self, make_encoder: Callable[[], Encoder], task: Task, inputs: str) -> None:
        self.task = task
        self.failure = Failure()
        try:
            self.encoder = make_encoder()
            self.inputs = Inputs.open(Path(inputs))
        except TclError as error:  # told with the first part: Ray would start one actor after the other
            self.failure = Failure.of(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do part `row["part"]`; a failure is a result, so that the other parts go on and Ray does not try again."""
        done: list[int] = []
        said: list[str] = []
        clock, failure = Clock(), self.failure
        try:
            if not failure.message:
                work = iter([int(row["part"])])
                clock = self.task.run(0, self.encoder, self.inputs, work, Link(done.append, said.append))
        except TclError as error:
            failure = Failure.of(error)
        *numbers, unknown = astuple(clock)
        values = dict(zip(("rows", "decode", "encode", "write"), numbers, strict=True))
        words = dict(zip(("texts", "some", "alone", "example"), unknown, strict=True))
        return row | values | words | {"done": sum(done), "said": said, **failure._asdict()}


@contextmanager
def _lost_actors() -> Iterator[None]:
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise TclError(
            f"a Ray actor was lost: {reason_of(error)}",
            hint="what was done stays, and the same command goes on",
        ) from error


def _examined(
    make_encoder: MakeEncoder, device: str, examine: Callable[[Encoder], EncoderFacts], facts: EncoderFacts
) -> Encoder:
    """The encoder of an actor, which has to be like the one the job was begun with."""
    encoder = make_encoder(device)
    if examine(encoder) != facts:
        raise unequal(f"{device} of one actor", "that of another")
    return encoder


def _examine(
    make_encoder: MakeEncoder, device: str, examine: Callable[[Encoder], EncoderFacts]
) -> EncoderFacts | Failure:
    try:
        return examine(make_encoder(device))
    except TclError as error:
        return Failure.of(error)
