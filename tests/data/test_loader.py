"""Batches depend on (seed, epoch, position) only: not on workers, not on where an epoch is entered."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import random
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tcl.data.images.augment import Transform, build_transform
from tcl.data.loader import Batch, TrainLoader
from tcl.data.pairs.samples import PairBatch, PairSamples
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.data.sources.find import SourceRows
from tcl.data.tokenizer import CaptionTokenizer, clean_caption
from tcl.errors import DataError, UsageError
from tcl.machine.seeding import mix

SCENES = read_pairs(["scenes:train:23"])
TOKENIZER = CaptionTokenizer.train([text for pair in SCENES for text in pair.captions], 200)


def loader(index: PairIndex = SCENES, **changes: object) -> TrainLoader:
    settings = {"batch_size": 4, "workers": 0, "seed": 3}
    transform = build_transform(changes.pop("augment", "mild"), 32)
    samples = PairSamples(index, TOKENIZER, transform, changes.pop("max_length", 25))
    return TrainLoader(samples, **{**settings, **changes})


def same(a: list[PairBatch], b: list[PairBatch]) -> bool:
    tensors = ("images", "images_aug", "input_ids", "attention_mask")
    return len(a) == len(b) and all(
        x.sample_ids == y.sample_ids
        and x.bad == y.bad
        and all(torch.equal(getattr(x, n), getattr(y, n)) for n in tensors)
        for x, y in zip(a, b, strict=True)
    )


def with_bad_images(folder: Path, good: int, bad: int) -> PairIndex:
    lines = ["image,caption"] + [f"absent{i}.jpg,absent {i}" for i in range(bad)]
    lines += [f"scenes:val:0:{i},scene {i}" for i in range(good)]
    (folder / "pairs.csv").write_text("\n".join(lines))
    return read_pairs([str(folder / "pairs.csv")])


class Facts(Batch):
    """What the samples of a batch found out when they were loaded."""

    facts: list[Any]


class Rows:
    """Rows that are loaded by a function; all of them are in `parts`."""

    def __init__(self, load: Callable[[int], Any], *parts: SourceRows) -> None:
        self.load, self.parts = load, parts

    def __len__(self) -> int:
        return self.parts[-1].stop

    def name(self, row: int) -> str:
        return str(row)

    def collate(self, samples: list[Any], sample_ids: list[str], bad: list[dict[str, str]]) -> Facts:
        batch = Facts(sample_ids, bad)
        batch.facts = samples
        return batch


def drawn(row: int) -> int:
    return int(torch.randint(1 << 30, ()))


def test_what_a_seed_means() -> None:
    """It stays, else a run that goes on with a later release would see some samples twice and others never."""
    rows = Rows(drawn, SourceRows("first", 0, 3), SourceRows("second", 3, 8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(mix(5, 2))).tolist()
    draws = [int(torch.randint(1 << 30, (), generator=torch.Generator().manual_seed(mix(5, 2, at)))) for at in range(8)]
    loading = TrainLoader(rows, batch_size=2, workers=0, seed=5, slices=2, own=(1, 0))
    found = [(batch.sample_ids, batch.facts) for batch in loading.batches(2)]
    assert found == [([str(row) for row in order[at : at + 2]], draws[at : at + 2]) for at in (2, 0, 6, 4)]
    assert (mix(5, 2), mix(5, 2, 7)) == (210380050966385637, 4285866637160246385)


def test_visits_follow_the_weights() -> None:
    """As often as a weight says, in an order and with draws of their own."""
    rows = Rows(drawn, SourceRows("often", 0, 4, 2.5), SourceRows("rarely", 4, 8, 0.5))
    mixed, orders, draws = TrainLoader(rows, batch_size=1, workers=0, seed=0), set(), set()
    for epoch in range(8):
        batches = list(mixed.batches(epoch))
        order = [int(batch.sample_ids[0]) for batch in batches]
        assert sorted(order.count(row) for row in range(4)) == [2, 2, 3, 3]
        assert sorted(order.count(row) for row in range(4, 8)) == [0, 0, 1, 1]
        orders.add(tuple(order))
        draws |= {batch.facts[0] for batch in batches}
    assert len(orders) == 8 and len(draws) == 8 * 12


def test_a_data_set_of_one() -> None:
    one = TrainLoader(Rows(drawn, SourceRows("", 0, 1)), batch_size=4, workers=0, seed=0)
    assert [batch.sample_ids for batch in one.batches(0)] == [["0"]]


def test_nothing_more_is_read_after_an_error_of_all_images() -> None:
    """It may be a remote that has gone, and every further image would wait for it."""
    read = []

    def load(row: int) -> int:
        read.append(row)
        if len(read) == 2:
            raise DataError("the remote has gone")
        return row

    loading = TrainLoader(Rows(load, SourceRows("", 0, 9)), batch_size=5, workers=0, seed=0)
    with pytest.raises(DataError, match="the remote has gone"):
        next(loading.batches(0))
    assert len(read) == 2


def test_a_batch() -> None:
    batches = list(loader().batches(0))
    assert len(batches) == loader().steps_per_epoch == 23 // 4
    for batch in batches:
        assert batch.images.shape == batch.images_aug.shape == (4, 3, 32, 32)
        assert batch.images.dtype == batch.images_aug.dtype == torch.uint8
        assert not torch.equal(batch.images, batch.images_aug)
        assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.bool)
        assert batch.input_ids.shape == batch.attention_mask.shape and batch.attention_mask.any(0).all()
        assert torch.equal(batch.attention_mask, batch.input_ids != TOKENIZER.pad_id)
        assert batch.bad == []
        assert batch.to("cpu").sample_ids == batch.sample_ids
        assert batch.to("meta").images.is_meta and batch.to("meta").attention_mask.is_meta


def test_captions_belong_to_their_images_and_change_with_the_epoch() -> None:
    captions = {pair.image: {clean_caption(text) for text in pair.captions} for pair in SCENES}
    chosen = []
    for epoch in range(3):
        seen = {}
        for batch in loader(max_length=60).batches(epoch):
            for name, ids, mask in zip(batch.sample_ids, batch.input_ids, batch.attention_mask, strict=True):
                seen[name] = TOKENIZER.tokens(ids[mask].tolist())[1:]
                assert seen[name] in [TOKENIZER.tokens(TOKENIZER([t], None)[0][0])[1:] for t in captions[name]]
        assert len(seen) == 20  # 5 batches of 4 different pairs
        chosen.append(seen)
    assert list(chosen[0]) != list(chosen[1])
    assert any(chosen[0][name] != chosen[1][name] for name in chosen[0].keys() & chosen[1].keys())


@pytest.mark.parametrize("augment", ["mild", "published"])
def test_batches_do_not_depend_on_workers(augment: str) -> None:
    alone = list(loader(augment=augment).batches(1))
    for workers in (1, 2):
        crowd = loader(augment=augment, workers=workers)
        assert same(list(crowd.batches(1)), alone)
        for _ in crowd.batches(0):
            break  # leaves batches in flight
        assert same(list(crowd.batches(1, start=2)), alone[2:])
        crowd.close()


def test_start_skips_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(loader().batches(2))
    read = []
    views = Transform.views

    def counted(self: Transform, source: str, count: int) -> list[torch.Tensor]:
        read.append(source)
        return views(self, source, count)

    monkeypatch.setattr(Transform, "views", counted)
    for start in range(6):
        read.clear()
        assert same(list(loader().batches(2, start=start)), whole[start:])
        assert len(read) == 4 * (5 - start)


def test_seeds_differ() -> None:
    assert same(list(loader().batches(0)), list(loader().batches(0)))
    assert not same(list(loader().batches(0)), list(loader(seed=4).batches(0)))
    assert not same(list(loader().batches(0)), list(loader().batches(1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_random_state_of_the_training_is_left_alone(workers: int) -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    reading = loader(workers=workers, augment="published")
    for _ in reading.batches(0):
        torch.rand(3)
    reading.close()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    for _ in range(5):
        torch.rand(3)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_fewer_pairs_than_a_batch_make_one_batch_of_all() -> None:
    small = loader(batch_size=64)
    assert (small.steps_per_epoch, small.batch_size) == (1, 23)
    (batch,) = small.batches(0)
    assert sorted(batch.sample_ids) == sorted(pair.image for pair in SCENES)
    assert loader(batch_size=1).steps_per_epoch == 23


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_reported(workers: int, tmp_path: Path) -> None:
    reading = loader(with_bad_images(tmp_path, good=6, bad=3), batch_size=3, workers=workers)
    batches = list(reading.batches(0))
    reading.close()
    assert [len(batch.sample_ids) for batch in batches] == [3, 3, 3]
    assert all("scenes:" in name for batch in batches for name in batch.sample_ids)
    bad = [entry for batch in batches for entry in batch.bad]
    assert {Path(entry["image"]).name for entry in bad} == {f"absent{i}.jpg" for i in range(3)}
    assert {entry["reason"] for entry in bad} == {"no such file"}
    assert same(batches, list(loader(with_bad_images(tmp_path, good=6, bad=3), batch_size=3).batches(0)))


def test_one_good_image_among_few_is_found(tmp_path: Path) -> None:
    (batch,) = loader(with_bad_images(tmp_path, good=1, bad=15), batch_size=16).batches(0)
    assert set(batch.sample_ids) == {"scenes:val:0:0"}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_an_error_of_one_line(workers: int, tmp_path: Path) -> None:
    reading = loader(with_bad_images(tmp_path, good=0, bad=30), workers=workers)
    with pytest.raises(DataError, match=r"no readable image in 2\d tries.*absent\d+\.jpg: no such file") as caught:
        list(reading.batches(0))
    assert "\n" not in caught.value.message and "--images" in caught.value.hint
    reading.close()


def test_an_empty_index_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to load"):
        loader(PairIndex(SCENES.table.slice(0, 0), ""))


def test_slices_of_several_processes_make_up_the_steps_of_one() -> None:
    whole = list(loader(batch_size=6).batches(1))
    slices = [list(loader(batch_size=2, slices=3, own=[number]).batches(1)) for number in range(3)]
    both = list(loader(batch_size=2, slices=3, own=[0, 2]).batches(1, start=1))
    for step, batch in enumerate(whole):
        ids = [name for one in slices for name in one[step].sample_ids]
        assert ids == batch.sample_ids
        assert torch.equal(torch.cat([one[step].images for one in slices]), batch.images)
    assert [batch.sample_ids for batch in both] == [
        slices[number][step].sample_ids for step in (1, 2) for number in (0, 2)
    ]


def test_more_processes_than_pairs_come_round_again() -> None:
    few = read_pairs(["scenes:train:2"])
    ids = [next(loader(few, batch_size=4, slices=3, own=[n]).batches(0)).sample_ids for n in range(3)]
    assert [len(one) for one in ids] == [1, 1, 1] and ids[0] == ids[2] != ids[1]


def test_weights_decide_how_often_a_pair_is_visited(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n" + "".join(f"scenes:val:0:{i},a {i}\n" for i in range(4)))
    (tmp_path / "b.csv").write_text("image,caption\n" + "".join(f"scenes:val:0:{i},b {i}\n" for i in range(10, 14)))
    index = read_pairs([f"{tmp_path}/a.csv@2.5", f"{tmp_path}/b.csv@0.5"])
    mixed = loader(index, batch_size=1)
    assert mixed.steps_per_epoch == 12
    counts = []
    for epoch in range(2):
        seen = [name for batch in mixed.batches(epoch) for name in batch.sample_ids]
        counts.append({name: seen.count(name) for name in seen})
        often = sorted(counts[-1].get(f"scenes:val:0:{i}", 0) for i in range(4))
        rare = sorted(counts[-1].get(f"scenes:val:0:{i}", 0) for i in range(10, 14))
        assert (often, rare) == ([2, 2, 3, 3], [0, 0, 1, 1])
    assert counts[0] != counts[1]
    again = [name for batch in mixed.batches(1) for name in batch.sample_ids]
    torch.rand(3)
    assert again == [name for batch in loader(index, batch_size=1).batches(1) for name in batch.sample_ids]
    with pytest.raises(UsageError, match=r"b\.csv@0\.1: its weight leaves none of its 4 rows"):
        loader(read_pairs([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv@0.1"]))
    rare = loader(read_pairs([f"{tmp_path}/b.csv@0.5"]), batch_size=4)
    assert [len(set(batch.sample_ids)) for batch in rare.batches(0)] == [rare.batch_size] == [2]
    both = loader(read_pairs([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]), batch_size=3, slices=2, own=(0, 1))
    assert (both.steps_per_epoch, both.samples_per_step) == (1, 6)
    (batch,) = loader(read_pairs([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]), batch_size=8).batches(0)
    assert sorted(batch.sample_ids) == sorted(f"scenes:val:0:{i}" for i in (*range(4), *range(10, 14)))


def of_the_process(row: int) -> list[Any]:
    deaf = [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]
    return [os.getpid(), os.getpgrp(), deaf, torch.get_num_threads()]


def test_workers_leave_it_to_the_training_when_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Ctrl-C nor a stop of the job ends them; they stay for the next epoch, and end with the loader."""
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(call))
    loading = TrainLoader(Rows(of_the_process, SourceRows("", 0, 4)), batch_size=2, workers=1, seed=0)
    facts = [fact for epoch in (0, 1) for batch in loading.batches(epoch) for fact in batch.facts]
    (worker,) = {fact[0] for fact in facts}
    assert facts == [[worker, worker, [True, True], 1]] * 8 and worker != os.getpid()
    ours = [call for call in at_exit if isinstance(call[-1], weakref.ref) and call[-1]() is loading]
    ((function, *arguments),) = ours
    function(*arguments)  # as Python does when it ends
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert next(loading.batches(0)).facts[0][0] != worker
    loading.close()
    del loading
    gc.collect()
    function(*arguments)


def hang(row: int) -> int:
    hang.calls += 1  # type: ignore[attr-defined]
    if hang.calls > 2:  # type: ignore[attr-defined]
        time.sleep(600)
    return os.getpid()


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # it waits that long for an answer
    hang.calls = 0  # type: ignore[attr-defined]
    loading = TrainLoader(Rows(hang, SourceRows("", 0, 8)), batch_size=2, workers=1, seed=0)
    (worker, _) = next(loading.batches(0)).facts
    (process,) = (child for child in multiprocessing.active_children() if child.pid == worker)
    loading.close()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
