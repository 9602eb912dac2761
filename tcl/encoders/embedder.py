"""Vectors from Python: `tcl.load(...)` and the object it gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl.data.images.decode import ImageError
from tcl.data.tokenizer import clean_caption
from tcl.encoders.base import Encoder, reading_processor
from tcl.errors import DataError, UsageError
from tcl.vectors.dtypes import Dtype, quantise_each, stored_type, stored_width

ImageInput = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, URL or `scenes:` reference, a file's bytes, an open image, or pixels uint8 [H, W], [H, W, 3] or [H, W, 4]."""

Progress = Callable[[int], object]


class Embedder:
    """Images and texts to L2-normalised vectors in memory, read and preprocessed as by `tcl embed`.

    Args:
        encoder: the model.

    Attributes:
        embed_dim: width E of a vector.
        model_hash: identifies the model; vectors of equal hashes can be compared.
        backend: e.g. `torch-cpu`, `onnx-cpu`.
        precision: that the model computes in, e.g. `fp32`.
        processor: how inputs are read; large JPEGs at a fraction of their resolution.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.embed_dim, self.model_hash = encoder.embed_dim, encoder.model_hash
        self.backend, self.precision = encoder.backend, encoder.precision
        self.processor = reading_processor(encoder)
        self._lanes = int(getattr(encoder, "lanes", 1))  # calls of the encoder that profit from one another
        self._turns = threading.BoundedSemaphore(self._lanes)

    def __repr__(self) -> str:
        how = f"{self.backend}, {self.precision}, {self.embed_dim} dimensions"
        return f"<{type(self).__name__} of model {self.model_hash[:12]}: {how}>"

    def encode_images(
        self,
        images: ImageInput | Iterable[ImageInput],
        batch_size: int = 64,
        progress: Progress | None = None,
        workers: int = 4,
        precision: Dtype = "float32",
    ) -> NDArray[Any]:
        """Vectors [N, E] of images, in their order.

        Args:
            images: or a single one, which gives [1, E].
            batch_size: images per pass through the model.
            progress: called with the number of images done since the last call; `tqdm(...).update` fits.
            workers: threads that read and decode.
            precision: of the vectors, see `tcl.vectors.dtypes.quantise_each`; `binary` ones are [N, ceil(E / 8)].

        Raises:
            ImageError: an image cannot be read; the message says which one.
            UsageError: something else than an image, an unknown precision, or no worker.
        """
        if workers < 1:
            raise UsageError(f"workers is {workers}, at least 1 is needed")
        items = [images] if _is_single(images) else list(images)  # type: ignore[arg-type]
        with ThreadPoolExecutor(workers) as readers:

            def encode(rows: slice) -> NDArray[np.float32]:
                pixels = list(readers.map(self._pixels, range(*rows.indices(len(items))), items[rows]))
                return self._in_turn(self.encoder.encode_image, np.stack(pixels))

            return self._batches(len(items), batch_size, encode, progress, precision)

    def encode_texts(
        self,
        texts: str | Iterable[str],
        batch_size: int = 64,
        progress: Progress | None = None,
        precision: Dtype = "float32",
    ) -> NDArray[Any]:
        """Vectors [N, E] of texts, in their order.

        Args:
            texts: or a single one, which gives [1, E].
            batch_size: texts per pass through the model; texts of about one length share a batch.
            progress: called with the number of texts done since the last call.
            precision: of the vectors, as of images.

        Raises:
            DataError: a text holds no words.
            UsageError: something else than a text, or an unknown precision.
        """
        items = [texts] if isinstance(texts, str) else list(texts)
        for row, text in enumerate(items):
            if not isinstance(text, str):
                raise UsageError(f"text {row} is a {type(text).__name__}, not a str")
            if not clean_caption(text):
                raise DataError(f"text {row} holds no words: {text!r}", hint="leave it out")
        ids, mask = self.processor.texts(items)
        lengths = mask.sum(axis=1)
        order = np.argsort(lengths, kind="stable")

        def encode(rows: slice) -> NDArray[np.float32]:
            chosen = order[rows]
            longest = int(lengths[chosen].max())
            return self._in_turn(self.encoder.encode_text, ids[chosen, :longest], mask[chosen, :longest])

        sorted_vectors = self._batches(len(items), batch_size, encode, progress, precision)
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        return vectors

    def _batches(
        self,
        count: int,
        batch_size: int,
        encode: Callable[[slice], NDArray[np.float32]],
        progress: Progress | None,
        precision: Dtype,
    ) -> NDArray[Any]:
        """Encode slices of all rows: while the encoder is busy with some, the next one is prepared."""
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, at least 1 is needed")
        _check_precision(precision)
        vectors = np.empty((count, stored_width(self.embed_dim, precision)), stored_type(precision))
        slices = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
        pool = ThreadPoolExecutor(self._lanes + 1)
        try:
            for rows, batch in zip(slices, pool.map(encode, slices), strict=True):
                vectors[rows] = quantise_each(batch, precision)
                if progress is not None:
                    progress(rows.stop - rows.start)
        finally:
            pool.shutdown(cancel_futures=True)
        return vectors

    def _in_turn(self, encode: Callable[..., NDArray[np.float32]], *arrays: NDArray[Any]) -> NDArray[np.float32]:
        with self._turns:
            return encode(*arrays)

    def _pixels(self, row: int, image: ImageInput) -> NDArray[np.uint8]:
        if isinstance(image, np.ndarray):
            image = _from_pixels(row, image)
        elif not isinstance(image, str | Path | bytes | Image.Image):
            raise UsageError(f"image {row} is a {type(image).__name__}", hint="give paths, PIL images or uint8 arrays")
        try:
            return self.processor.image(image)
        except ImageError as error:
            if isinstance(image, bytes | Image.Image):  # which have no name
                raise ImageError(f"{row} of those given", error.reason) from error
            raise


def _check_precision(precision: str) -> None:
    if precision not in get_args(Dtype):
        raise UsageError(
            f"precision is {precision!r}, and vectors are {', '.join(get_args(Dtype))}",
            hint="what the model computes in is chosen by tcl.load(..., precision=)",
        )


def _is_single(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (3, 4))
    return isinstance(images, str | Path | bytes | Image.Image)


def _from_pixels(row: int, pixels: NDArray[Any]) -> Image.Image:
    grey, coloured = pixels.ndim == 2, pixels.ndim == 3 and pixels.shape[-1] in (3, 4)
    if pixels.dtype != np.uint8 or not (grey or coloured) or 0 in pixels.shape:
        raise UsageError(
            f"image {row} is an array of {pixels.dtype} {pixels.shape}",
            hint="give uint8 pixels [H, W, 3], [H, W, 4] or [H, W]",
        )
    return Image.fromarray(pixels)
