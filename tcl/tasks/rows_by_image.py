"""Rows of an evaluation, brought together by their images, so that each image is read and encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tcl.distributed.share import ALONE, Share
from tcl.evaluation.batches import decode_batches
from tcl.models.attention import KeyValue
from tcl.models.task_model import TaskModel


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
