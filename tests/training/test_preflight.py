"""What is looked at before a run: a few training images of each source, and whether the run is finished already."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tcl.config.recipe import Recipe
from tcl.data.pairs.table import read_pairs
from tcl.data.sources.find import SourceRows
from tcl.data.storage import open as storage
from tcl.data.storage.parquet_cells import cell_reference
from tcl.distributed.world import World
from tcl.errors import DataError, UsageError
from tcl.tasks.build import build_training
from tcl.training.preflight import LOOKED_AT, _spread, changed_batches, check_present
from tcl.training.reporter import Reporter
from tests.tasks.finetuning import recipe_for, write_rows


class Listener(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class Named:
    """Rows of which nothing is known but their names."""

    def __init__(self, names: Sequence[str], parts: Sequence[SourceRows] = ()) -> None:
        self._names = names
        self.parts = parts or [SourceRows("", 0, len(names))]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, row: int) -> str:
        return self._names[row]

    load = collate = name


def picture(path: Path) -> str:
    Image.new("RGB", (4, 4)).save(path)
    return str(path)


def look_at(*names: str) -> list[str]:
    listener = Listener()
    check_present(Named(names), listener)  # type: ignore[arg-type]
    return listener.messages


def test_images_that_are_all_missing_stop_the_run(tmp_path: Path) -> None:
    names = [f"{tmp_path}/{number}.png" for number in range(1000)]
    with pytest.raises(DataError, match=r"none of the 64 images looked at is there; the first is .*/0\.png: no such"):
        look_at(*names)
    with pytest.raises(DataError) as error:
        look_at(names[0])
    assert "--images" in str(error.value.hint)


def test_some_missing_images_are_one_warning_with_their_share(tmp_path: Path) -> None:
    there = picture(tmp_path / "there.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    bad = [f"{tmp_path}/{name}.png" for name in ("empty", "folder", "gone", "a\0name")]
    (warning,) = look_at(*[there] * 4, *bad)
    assert (
        "of 8 images looked at, at least 4 (50%) are missing" in warning and "empty.png: the file is empty" in warning
    )
    for name, reason in zip(bad[1:], ("Is a directory", "no such file", "embedded null byte"), strict=True):
        (warning,) = look_at(there, name)
        assert f"{name}: {reason}" in warning
    assert look_at(there, "scenes:train:0:1") == []


def test_both_images_of_a_row_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a, b").mkdir()
    first, second = picture(tmp_path / "a, b" / "1.png"), picture(tmp_path / "2.png")
    assert look_at(f"{first}, {second}", f"{first}, scenes:train:0:1") == []
    (warning,) = look_at(first, f"{first}, {tmp_path}/gone.png")
    assert f"the first is {tmp_path}/gone.png: no such file" in warning


def test_remote_images_are_asked_for_and_remote_shards_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/looked-at/there.png", b"123")
    (warning,) = look_at("memory://looked-at/there.png", "memory://looked-at/gone.png")
    assert "memory://looked-at/gone.png: no such file" in warning

    def fetch(url: str) -> Path:
        raise AssertionError(url)

    monkeypatch.setattr(storage, "fetch_named", fetch)
    assert look_at("memory://looked-at/shard.tar!a.png@512+100") == []
    with pytest.raises(UsageError, match="nosuch"):
        monkeypatch.undo()
        monkeypatch.setenv("TCL_URLS", "nosuch")
        look_at("nosuch://bucket/a.png")


def test_rows_are_from_all_over_each_source() -> None:
    parts = [SourceRows("large", 0, 10**6), SourceRows("small", 10**6, 10**6 + 5)]
    rows = list(_spread(parts))
    assert len(rows) == LOOKED_AT // 2 + 5 and rows == sorted(set(rows))
    assert rows[0] == 0 and 10**6 * 0.9 < rows[31] < 10**6 and rows[-5:] == list(range(10**6, 10**6 + 5))


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "vqa", "entailment", "nlvr2", "text_assignment"])
def test_every_task_looks_before_it_trains(tiny_model_folder: Path, tmp_path: Path, task: str) -> None:
    row = {"image": "gone.png", "images": ["gone.png", "gone.png"]}
    row |= {"caption": "a thing", "text": "a thing", "question": "what?", "answer": "no"}
    if task != "nlvr2":
        del row["images"]
    labels = ("True", "False") if task == "nlvr2" else ("yes", "no")
    source = write_rows(tmp_path / "rows.jsonl", [row | {"label": label} for label in labels])
    with pytest.raises(DataError, match=r"none of the 2 images looked at is there; .*gone\.png: no such file"):
        build_training(recipe_for(task, tiny_model_folder, source), World())


def test_members_of_a_local_shard_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a thing\n")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(picture(tmp_path / "a.png"), "a.png")
        shard.add(tmp_path / "a.txt", "a.txt")
    (pair,) = read_pairs([str(tmp_path / "shard.tar")])
    assert look_at(pair.image) == []
    (tmp_path / "shard.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is cut off"):
        look_at(pair.image)


def test_cells_of_tables_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a large table may have to be read for one."""
    pq.write_table(pa.table({"image": [Path(picture(tmp_path / "a.png")).read_bytes()]}), tmp_path / "rows.parquet")
    monkeypatch.setattr("tcl.training.preflight.open_image", None)
    assert look_at(cell_reference(str(tmp_path / "rows.parquet"), "image", 0)) == []


def test_a_setting_that_was_not_set_is_null_as_in_a_recipe() -> None:
    meta = {"samples_per_step": 8, "recipe": Recipe().model_dump()}
    recipe = Recipe.model_validate({"train": {"steps": 60}})
    [change] = changed_batches(recipe, meta, samples_per_step=8)
    assert change.startswith("train.steps is 60 now, but was null: ")
