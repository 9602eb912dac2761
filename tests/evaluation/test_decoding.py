"""Images come in order, whatever the threads, and what cannot be read says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl.evaluation.batches import decode_batches
from tcl.models.tcl import TCL


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("workers", [1, 4])
def test_order_sizes_and_errors(tiny_model: TCL, tmp_path: Path, batch_size: int, workers: int) -> None:
    images = []
    for row in range(7):
        images.append(str(tmp_path / f"{row}.png"))
        if row not in (2, 3):
            Image.new("RGB", (10 + row, 20), (30 * row, 0, 0)).save(images[-1])
    (tmp_path / "3.png").write_bytes(b"\x89PNG no more")
    batches = list(decode_batches(tiny_model.processor, images, batch_size, workers))
    assert [len(batch) for batch in batches] == {1: [1] * 7, 3: [3, 3, 1], 100: [7]}[batch_size]
    assert [row for batch in batches for row in batch.rows] == [0, 1, 4, 5, 6]
    assert [size for batch in batches for size in batch.sizes] == [(20, 10 + row) for row in (0, 1, 4, 5, 6)]
    pixels = np.concatenate([batch.pixels for batch in batches])
    assert pixels.shape == (5, 3, 32, 32) and pixels[:, 0, 0, 0].tolist() == [0, 30, 120, 150, 180]
    errors = {row: error for batch in batches for row, error in batch.errors.items()}
    assert set(errors) == {2, 3} and errors[2].reason == "no such file" and images[3] in errors[3].message


def test_nothing_to_decode(tiny_model: TCL) -> None:
    assert list(decode_batches(tiny_model.processor, [], 4, 2)) == []
