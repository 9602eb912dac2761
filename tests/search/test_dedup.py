"""Near-duplicates: the groups of plain pairwise comparison, whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl.errors import DataError
from tcl.search import dedup
from tcl.search.dedup import find_groups, groups_of
from tcl.vectors.reader import VectorFile
from tests.vectors.vector_files import unit, write, write_folder


def _plain(vectors: NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Connected components by walking from each row."""
    close = vectors @ vectors.T >= threshold
    groups, seen = [], set[int]()
    for row in range(len(vectors)):
        group, waiting = set[int](), [row]
        while waiting:
            here = waiting.pop()
            if here not in group:
                group.add(here)
                waiting += np.flatnonzero(close[here]).tolist()
        if row not in seen and len(group) > 1:
            groups.append(sorted(group))
        seen |= group
    return groups


@pytest.mark.parametrize("block", [3, 16, 1000])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, threshold: float, block: int) -> None:
    monkeypatch.setattr(dedup, "BLOCK_ROWS", block)
    vectors = unit(60)
    vectors[[7, 40, 59]] = vectors[3]
    file = write(tmp_path / f"v{suffix}", vectors)
    done: list[int] = []
    groups = list(groups_of(file, find_groups(file, threshold, done.append)))
    assert sum(done) == 60
    assert [[group.kept.row, *(hit.row for hit in group.duplicates)] for group in groups] == _plain(vectors, threshold)
    for group in groups:
        rows = [hit.row for hit in group.duplicates]
        np.testing.assert_allclose(
            [hit.score for hit in group.duplicates], vectors[rows] @ vectors[group.kept.row], atol=1e-6
        )


def test_a_chain_is_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is close to the next alone, over many blocks and in an order that joins groups late."""
    monkeypatch.setattr(dedup, "BLOCK_ROWS", 4)
    angles = np.arange(40) * 0.1
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    shuffled = chain[np.random.default_rng(0).permutation(40)]
    file = write_folder(tmp_path / "parts", shuffled, 7)
    [group] = groups_of(file, find_groups(file, 0.99))
    assert group.kept.row == 0 and len(group.duplicates) == 39
    assert min(hit.score for hit in group.duplicates) < 0
    assert list(groups_of(file, find_groups(file, 0.999))) == []


def test_a_huge_group_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "v.npy", np.repeat(unit(1), 11, axis=0))
    first = find_groups(file, 0.9)
    monkeypatch.setattr(dedup, "BLOCK_ROWS", 4)
    taken: list[int] = []
    take = VectorFile.take

    def watched(vectors: VectorFile, rows: list[int]) -> NDArray[np.float32]:
        taken.append(len(rows))
        return take(vectors, rows)

    monkeypatch.setattr(VectorFile, "take", watched)
    [group] = groups_of(file, first)
    assert [hit.score for hit in group.duplicates] == pytest.approx([1] * 10) and max(taken) == 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_equal_vectors_at_the_highest_threshold(tmp_path: Path, dtype: str) -> None:
    vectors = unit(20, 64)
    vectors[13] = vectors[2]
    file = write(tmp_path / "v.npy", vectors, dtype)
    [group] = groups_of(file, find_groups(file, 1.0))
    assert (group.kept.row, [hit.row for hit in group.duplicates]) == (2, [13])
    assert group.to_json() == {
        "kept": {"row": 2, "id": "id-2", "text": "text id-2"},
        "duplicates": [{"row": 13, "id": "id-13", "text": "text id-13", "score": pytest.approx(1, abs=1e-5)}],
    }


def test_nothing_to_compare_and_bad_values(tmp_path: Path) -> None:
    for rows in (0, 1):
        file = write(tmp_path / f"{rows}.npy", unit(rows))
        assert list(groups_of(file, find_groups(file, 0.5))) == []
    vectors = unit(5)
    vectors[3] = np.nan
    with pytest.raises(DataError, match="row 3 is not finite"):
        find_groups(write(tmp_path / "v.npy", vectors), 0.5)
