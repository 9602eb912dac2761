"""What the evaluations of all tasks share: the model, files of predictions, images that cannot be read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tcl.distributed.launch import launched
from tcl.distributed.share import ALONE, Share
from tcl.errors import CheckpointError, TclError, UsageError, without_secrets
from tcl.files.atomic import atomic_file, try_writing
from tcl.files.remote import is_url
from tcl.weights.untrained import Use, check_trained
from tcl_cli._console import counted, out
from tcl_cli._options import Device

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

SHOWN = 5  # unreadable images that are named on a terminal; --json has all

HEADS = {
    "entailment": "classification head (cls_head)",
    "nlvr2": "classification head (cls_head)",
    "vqa": "answer decoder (text_decoder)",
}
"""What a model must have been given for a task."""


@contextmanager
def processes(device: Device) -> Iterator[tuple[str, Share]]:
    """Where this process computes, and its share; of several, as `torchrun` starts them, only the first speaks.

    What may fail in one process alone belongs into `Share.agree`, so that the first one hears of it, and says why.

    Raises:
        UsageError: there is no such device.
    """
    if not launched():
        yield device, ALONE
        return
    from tcl.distributed.world import LostPeerError, join

    try:
        with join(device) as world, _silent(not world.is_main):
            yield world.device, Share.of(world)
    except LostPeerError as error:
        raise LostPeerError(error.message, hint="nothing was written; start the evaluation again") from error


@contextmanager
def _silent(others: bool) -> Iterator[None]:
    """Nothing is printed, errors included, and the exit code stays what it is."""
    if not others:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except Exception as error:
            raise typer.Exit(error.exit_code if isinstance(error, TclError) else 1) from error


def load(location: str, device: str, image_size: str | None, *uses: Use) -> TCL:
    """A model on its device and at the image size asked for.

    Args:
        location: of `find_model`, which is asked before the data is read.
        device: where it computes: of `processes`.
        image_size: of `--image-size`.
        uses: what is wanted of the model.

    Raises:
        UsageError: there is no such device, the size is malformed, or the model lacks what a use needs.
        CheckpointError: the weights are damaged or not finite.
    """
    loaded = _place(location, device, image_size)
    check_trained(loaded.untrained, location, *uses)
    return loaded


def _place(location: str, device: str, image_size: str | None, **options: Any) -> TCL:
    from tcl.evaluation.metrics import NAN_HINT
    from tcl.machine.devices import choose_device
    from tcl.weights.load import load_model

    size = _parse_size(image_size)
    chosen = device if launched() else choose_device(device)
    loaded = load_model(location, **options)
    if not all(bool(parameter.isfinite().all()) for parameter in loaded.parameters()):
        raise CheckpointError(f"{location}: its weights are not finite", hint=NAN_HINT)
    if size is not None:
        from tcl.weights.resize import resize_images

        resize_images(loaded, size)
    return loaded.to(chosen)


def load_for(
    task: str, location: str, device: str, image_size: str | None = None, answers: list[str] | None = None
) -> Any:
    """The same for a model that was fine-tuned for `task`, here or by the published code.

    Args:
        task: of the evaluation.
        location: see `load`.
        device: see `load`.
        image_size: see `load`.
        answers: to choose from; a published checkpoint has none of its own.

    Raises:
        UsageError: it was not; the message names what it lacks.
    """
    loaded: Any = _place(location, device, image_size, for_task=True, answers=answers)
    head = getattr(loaded, "head", None)
    if head is None or head.task != task:
        made_for = f"fine-tuned for {head.task}" if head else "not fine-tuned for a task"
        raise UsageError(
            f"{location} has no {HEADS[task]} for {task}: it was {made_for}",
            hint=f"tcl finetune {task} --model {location} --data TRAINING_ROWS",
        )
    return loaded


def check_images(images: str | None) -> None:
    """Refuse a folder of images that is not there.

    Raises:
        UsageError: with its name.
    """
    if images is not None and not is_url(images) and not os.path.isdir(images):
        raise UsageError(f"no such folder of images: {images}", hint="check --images")


def check_output(option: str, path: Path | None, sources: Iterable[str], suffix: str | None = None) -> None:
    """Find out what cannot be written before the work begins.

    Args:
        option: for the message.
        path: what will be written, if anything.
        sources: the data, which it must not replace.
        suffix: that its name must have, so that nothing else is replaced by a slip.

    Raises:
        UsageError: it cannot be written.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path} is no file", hint="name a file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no folder {path.parent}", hint="make it, or choose another place")
    try:
        try_writing(path.parent)
    except OSError as error:
        reason = f"{path.parent} cannot be written to: {error.strerror}"
        raise UsageError(f"{option} {path}: {reason}", hint="choose another place") from error
    if path.exists() and any(path.samefile(name) for source in sources for name in _files(source)):
        raise UsageError(f"{option} {path} is the data itself", hint="choose another name")
    if suffix is not None and path.suffix != suffix:
        raise UsageError(f"{option} {path}: its name must end in {suffix}", hint=f"for example {path.stem}{suffix}")


def _files(source: str) -> list[str]:
    """The local files of a source, whatever stands around its name."""
    from tcl.data.sources.find import find_source

    names = [source] if os.path.exists(source) else [file.name for file in find_source(source).files]
    return [name for name in names if os.path.exists(name)]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL; see `write_text`."""
    _write(path, (without_secrets(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it: a full disk leaves the file that was there."""
    _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
    # What is no Unicode, as in names of files, becomes an escape of the kind that JSON has too.
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(parts)


def show(
    values: dict[str, Any],
    say: Callable[[], None],
    lines: Iterable[dict[str, Any]],
    predictions: Path | None,
    as_json: bool,
    more: dict[str, Any] | None = None,
) -> None:
    """Print the figures, and write the predictions.

    Args:
        values: task, model, data, figures and images left out, for JSON.
        say: prints the figures for people.
        lines: what the model says of each row.
        predictions: where that goes, if anywhere.
        as_json: print one object.
        more: what stands at its end.
    """
    if as_json:
        out.json(values | {"predictions": predictions and str(predictions)} | (more or {}))
    else:
        say()
    if predictions:
        write_lines(predictions, lines)
        out.message(f"predictions in {predictions}")


def list_bad(bad: Sequence[dict[str, str]]) -> None:
    """Name the images that could not be read."""
    if not bad:
        return
    out.warning(f"{counted(len({entry['image'] for entry in bad}), 'images')} left out:")
    for entry in bad[:SHOWN]:
        place = f"{entry['row']}: " if "row" in entry else ""
        out.message(f"  {place}{entry['image']}: {entry['reason']}")
    if len(bad) > SHOWN:
        out.message(f"  and {len(bad) - SHOWN} more; --json lists all")


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or not all(16 <= side <= 1024 for side in sides):
        raise UsageError(f"--image-size {text}: no size in pixels, 16 to 1024", hint="write 384, or 256x384")
    return sides[0], sides[-1]
