"""Images of an evaluation, decoded ahead of the model; what cannot be read is handed on as the error that says why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcl.data.images.decode import ImageError, decode, resize
from tcl.data.processor import Processor


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
