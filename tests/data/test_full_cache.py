"""A cache folder that is full: one error, not unreadable images that are replaced by others until none is left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest

from tcl.data.check.images import check_images
from tcl.data.images.decode import decode
from tcl.data.images.original import read_original
from tcl.data.loader import Batch, TrainLoader
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.files.cache import CacheError
from tests.data.sources.test_tar import jpeg


@pytest.fixture
def index() -> Iterator[PairIndex]:
    """One pair, whose image is remote."""
    system = fsspec.filesystem("memory")
    system.pipe("/full/a.jpg", jpeg(1))
    system.pipe("/full/pairs.csv", b"image,caption\na.jpg,a dog\n")
    yield read_pairs(["memory://full/pairs.csv"])
    system.rm("/full", recursive=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_a_full_cache_is_no_unreadable_image(index: PairIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCL_CACHE", "/dev/full")
    for read in (decode, lambda image: read_original(image, 32)):
        with pytest.raises(CacheError, match="cannot write to the cache folder /dev/full"):
            read(index[0].image)
    with pytest.raises(CacheError):
        check_images(index, np.array([0]))
    loader = TrainLoader(Rows(index), batch_size=1, workers=0, seed=0)
    with pytest.raises(CacheError):
        next(loader.batches(0))


class Rows:
    """The images of an index, as a task."""

    def __init__(self, index: PairIndex) -> None:
        self.index, self.parts = index, index.parts

    def __len__(self) -> int:
        return len(self.index)

    def load(self, row: int) -> object:
        return decode(self.index[row].image)

    def name(self, row: int) -> str:
        return self.index[row].image

    def collate(self, samples: list[object], sample_ids: list[str], bad: list[dict[str, str]]) -> Batch:
        return Batch(sample_ids, bad)
