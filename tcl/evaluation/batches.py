"""Images of an evaluation in batches, decoded ahead of the model.

An image that cannot be read is handed on as the error that says why. `rows_by_image` brings rows together by their
images, so that each image is read and encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl.data.images.decode import IMAGES_HINT, ImageError, decode, resize
from tcl.data.processor import Processor
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError
from tcl.models.attention import KeyValue
from tcl.models.task_model import TaskModel


class Decoded(NamedTuple):
    """Images that follow each other in the list.

    Attributes:
        rows: places in the list of those that could be read.
        pixels: uint8 [len(rows), 3, H, W] at the model's size.
        sizes: (height, width) of each before it was resized.
        errors: place and reason of those that could not.
    """

    rows: list[int]
    pixels: NDArray[np.uint8]
    sizes: list[tuple[int, int]]
    errors: dict[int, ImageError]

    def __len__(self) -> int:
        return len(self.rows) + len(self.errors)


def decode_batches(
    processor: Processor, images: Sequence[str | Path], batch_size: int, workers: int
) -> Iterator[Decoded]:
    """Batches in order; while one is used, threads decode the next.

    Args:
        processor: knows the model's image size.
        images: paths or `scenes:` references.
        batch_size: images at once; two batches are in memory.
        workers: decoding threads.
    """

    def read(image: str | Path) -> tuple[NDArray[np.uint8], tuple[int, int]] | ImageError:
        try:
            picture = decode(image)
        except ImageError as error:
            return error
        return resize(picture, processor.image_size), (picture.height, picture.width)

    with ThreadPoolExecutor(max(workers, 1)) as pool:

        def submit(start: int) -> list[Future]:
            return [pool.submit(read, image) for image in images[start : start + batch_size]]

        ahead = submit(0)
        for start in range(0, len(images), batch_size):
            current, ahead = ahead, submit(start + batch_size)
            found = {row: future.result() for row, future in enumerate(current, start)}
            errors = {row: value for row, value in found.items() if isinstance(value, ImageError)}
            good = {row: value for row, value in found.items() if not isinstance(value, ImageError)}
            pixels = [pixels for pixels, _ in good.values()]
            yield Decoded(
                list(good),
                np.stack(pixels) if pixels else np.empty((0, 3, *processor.image_size), np.uint8),
                [size for _, size in good.values()],
                errors,
            )


class Row(Protocol):
    """A row of an evaluation.

    Attributes:
        place: file and line, for messages.
    """

    @property
    def place(self) -> str: ...


def left_out(rows: Sequence[Row], unread: Sequence[tuple[int, str, str]], done: int) -> list[dict[str, str]]:
    """The images that could not be read, with the places of their rows, and why.

    Args:
        rows: of the evaluation.
        unread: row, image and reason of each.
        done: rows whose images could be read.

    Raises:
        DataError: there is none.
    """
    bad = [{"row": rows[row].place, "image": image, "reason": reason} for row, image, reason in unread]
    if not done:
        raise DataError(f"no image can be read; the first: {bad[0]['image']}: {bad[0]['reason']}", hint=IMAGES_HINT)
    return bad


class RowsOfImages(NamedTuple):
    """Some rows whose images are encoded.

    Attributes:
        rows: their numbers.
        images: keys and values of I images.
        image_of_row: their places among these, int64 [len(rows), images per row].
    """

    rows: list[int]
    images: list[KeyValue]
    image_of_row: Tensor


def rows_by_image(
    model: TaskModel,
    images: Sequence[tuple[str, ...]],
    batch_size: int,
    workers: int,
    unreadable: Callable[[int, str, str], None],
    share: Share = ALONE,
) -> Iterator[RowsOfImages]:
    """The rows of a share with readable images, in the order in which their images come first.

    Args:
        model: with its processor.
        images: references of each row, as many for every row.
        batch_size: images, and rows, at once; memory depends on it alone.
        workers: decoding threads.
        unreadable: told the row, the image, and why it cannot be read.
        share: what this process does of them: whole batches of images.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, of_row in enumerate(images):
        groups.setdefault(of_row, []).append(row)
    each = model.images_per_text
    at_once = max(batch_size // each, 1)
    own = share.rows(len(groups), at_once)
    every, rows_of = list(groups), list(groups.values())
    rows_of = [rows_of[number] for number in own]
    listed = [image for number in own for image in every[number]]
    for decoded in decode_batches(model.processor, listed, at_once * each, workers):
        for number, error in decoded.errors.items():
            for row in rows_of[number // each]:
                unreadable(row, listed[number], error.reason)
        place = {number: i for i, number in enumerate(decoded.rows)}
        found = sorted({number // each for number in decoded.rows})
        members = {group: [place.get(group * each + i) for i in range(each)] for group in found}
        pairs = [(row, of_row) for group, of_row in members.items() if None not in of_row for row in rows_of[group]]
        if not pairs:
            continue
        key_values = model.image_key_values(model.encode_image(decoded.pixels).image_embeds)
        for start in range(0, len(pairs), batch_size):
            rows, of_rows = zip(*pairs[start : start + batch_size], strict=True)
            yield RowsOfImages(list(rows), key_values, torch.tensor(of_rows, device=model.device))
