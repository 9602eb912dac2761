"""Shards hold every readable pair, in bytes that depend on nothing but the pairs; a pack that stopped goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from tcl.data.images.decode import decode
from tcl.data.pack import pack as pack_module
from tcl.data.pack import shard as shard_module
from tcl.data.pack.pack import Pack, PackReport, PackSettings
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.errors import DataError, TclError, UsageError
from tests.data.files import jpeg, png

REPOSITORY = Path(__file__).parents[3]
SMALL = PackSettings(size=32, quality=80, shard_rows=3)


def write_pairs(folder: Path, files: dict[str, bytes]) -> PairIndex:
    folder.mkdir(exist_ok=True)
    rows = []
    for number, (name, data) in enumerate(files.items()):
        if data:
            (folder / name).write_bytes(data)
        rows.append({"image": name, "caption": [f"dog {number}", "größer"], "image_id": f"id{number}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs([str(folder / "pairs.jsonl")])


@pytest.fixture
def index(tmp_path: Path) -> PairIndex:
    """Eight pairs: three shards of at most three."""
    files = {
        "large.jpg": jpeg(300, 200),
        "small.jpg": jpeg(30, 90, seed=1),
        "turned.jpg": jpeg(40, 20, seed=2, orientation=6),
        "gray.jpg": jpeg(20, 20, seed=3, mode="L"),
        "cut.jpg": jpeg(64, 64, seed=4)[:-900],
        "glass.png": png(100, 64),
        "gone.jpg": b"",
        "tiny.png": png(5, 4),
    }
    return write_pairs(tmp_path / "data", files)


def pack(index: PairIndex, out: Path, settings: PackSettings = SMALL, **options: Any) -> PackReport:
    return Pack(index, out, settings).write(**options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                found[member.name] = file.read()
    return found


def test_shards_hold_every_readable_pair(index: PairIndex, tmp_path: Path) -> None:
    report = pack(index, tmp_path / "out")
    found = members(tmp_path / "out")
    rows = [0, 1, 2, 3, 5, 7]
    assert list(found) == [f"{row:09}.{suffix}" for row in rows for suffix in ("jpg", "json")]
    sizes = {}
    for row in rows:
        image = Image.open(BytesIO(found[f"{row:09}.jpg"]))
        image.load()
        assert (image.format, image.mode, image.getexif().get(0x0112)) == ("JPEG", "RGB", None)
        sizes[row] = image.size
        values = json.loads(found[f"{row:09}.json"])
        assert values == {
            "captions": [f"dog {row}", "größer"],
            "image_id": f"id{row}",
            "image": index[row].image,
        }
    assert sizes == {0: (48, 32), 1: (30, 90), 2: (20, 40), 3: (20, 20), 5: (50, 32), 7: (5, 4)}
    assert found["000000001.jpg"] == Path(index[1].image).read_bytes()  # small, upright, RGB: copied as it is
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(error["row"], error["image"]) for error in errors] == [(4, index[4].image), (6, index[6].image)]
    assert "truncated" in errors[0]["reason"] and errors[1]["reason"] == "no such file"
    before = sum(Path(index[row].image).stat().st_size for row in rows)
    after = sum(len(data) for name, data in found.items() if name.endswith("jpg"))
    assert report == PackReport(3, 6, 1, 2, before, after)
    record = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert record["finished"] and record["fingerprint"] == index.fingerprint and record["images"] == 6
    assert not list((tmp_path / "out").glob(".*"))


def test_pixels_are_those_of_a_careful_resize(tmp_path: Path) -> None:
    y, x = np.mgrid[:1200, :1600]
    smooth = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), (x + y) / 11], -1).astype(np.uint8)
    files = {}
    for name in ("a.jpg", "a.png"):  # a JPEG is decoded at a fraction of its resolution, a PNG is not
        file = BytesIO()
        Image.fromarray(smooth).save(file, "JPEG" if name == "a.jpg" else "PNG", quality=95)
        files[name] = file.getvalue()
    pack(write_pairs(tmp_path / "data", files), tmp_path / "out", PackSettings(288, 95))
    expected = np.asarray(Image.fromarray(smooth).resize((384, 288), Image.Resampling.LANCZOS), np.float32)
    for name, data in members(tmp_path / "out").items():
        if name.endswith(".jpg"):
            assert np.abs(np.asarray(Image.open(BytesIO(data)), np.float32) - expected).mean() < 2, name


def test_bytes_do_not_depend_on_the_workers(index: PairIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "CHUNK_IMAGES", 2)
    for workers in (1, 2):
        pack(index, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_packed_shards_are_a_source_of_pairs(index: PairIndex, tmp_path: Path) -> None:
    pack(index, tmp_path / "out")
    packed = read_pairs([f"{tmp_path}/out/*.tar"])
    rows = [0, 1, 2, 3, 5, 7]
    assert [(pair.captions, pair.image_id) for pair in packed] == [(index[row].captions, f"id{row}") for row in rows]
    assert [decode(pair.image).size for pair in packed][:2] == [(48, 32), (30, 90)]
    assert packed.skipped == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from tcl.data.pairs.table import read_pairs
from tcl.data.pack.pack import Pack, PackSettings

done = 0
def progress(n, bad):
    global done
    done += n
    if done > 4:
        os.kill(os.getpid(), signal.SIGKILL)

import tcl.data.pack.pack
tcl.data.pack.pack.CHUNK_IMAGES = 1
Pack(read_pairs([sys.argv[1]]), Path(sys.argv[2]), PackSettings(32, 80, 3)).write(1, progress)
"""


def test_a_pack_that_was_killed_goes_on_at_the_next_shard(index: PairIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "data" / "pairs.jsonl"), str(out)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in sorted(out.glob("0*"))] == ["00000.tar", "00000_stats.json"]
    first = (out / "00000.tar").stat()
    work = Pack(index, out, SMALL)
    assert (len(work.shards), work.shards_done, work.rows_done) == (3, 1, 3)
    rows: list[int] = []
    report = work.write(progress=lambda n, bad: rows.append(n))
    assert sum(rows) == 5
    after = (out / "00000.tar").stat()
    assert (after.st_ino, after.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert report == pack(index, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_ctrl_c_leaves_complete_shards(index: PairIndex, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(index, tmp_path / "out", progress=_interrupt)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "00000.tar",
        "00000_stats.json",
        "pack.json",
    ]


def test_a_shard_that_was_deleted_is_written_again(index: PairIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        pack(index, out, progress=_interrupt)
    (out / "00000.tar").unlink(missing_ok=True)
    assert Pack(index, out, SMALL).rows_done == 0


def _interrupt(n: int, bad: int) -> None:
    if bad:
        raise KeyboardInterrupt


class FullDisk:
    """A file on a disk with room for so many more bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_leaves_complete_shards(index: PairIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    create = shard_module._create
    with monkeypatch.context() as patch:
        patch.setattr(
            shard_module, "_create", lambda path: create(path) if "00000" in path.name else FullDisk(create(path), 1000)
        )
        with pytest.raises(TclError, match="no space left") as caught:
            pack(index, out)
    assert caught.value.exit_code == 1 and "1 of 3 shards are complete" in (caught.value.hint or "")
    assert [path.name for path in sorted(out.iterdir())] == ["00000.tar", "00000_stats.json", "pack.json"]
    pack(index, out)
    pack(index, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_what_is_refused(index: PairIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(index, out)
    before = contents(out)
    other = write_pairs(tmp_path / "other", {"a.jpg": jpeg(20, 20)})
    (tmp_path / "file").write_text("x")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "pack.json").write_text("[]")
    for pairs, folder, settings, message in [
        (index, out, SMALL, "is packed already"),
        (other, out, SMALL, "is a pack with other pairs"),
        (index, out, PackSettings(33, 80, 3), "is a pack with another size"),
        (index, out, PackSettings(32, 80, 4), "is a pack with another shard rows"),
        (index, tmp_path / "data", SMALL, "exists and is no pack"),
        (index, tmp_path / "list", SMALL, "exists and is no pack"),
        (index, tmp_path / "file", SMALL, "is no folder"),
        (index, tmp_path / "file" / "out", SMALL, "cannot be written"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            pack(pairs, folder, settings)
        assert caught.value.hint
    assert contents(out) == before


def test_weights_are_refused_rather_than_lost(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", {"a.jpg": jpeg(20, 20)})
    with pytest.raises(UsageError, match="no place for the weight 2") as caught:
        Pack(read_pairs([f"{tmp_path}/data/pairs.jsonl@2"]), tmp_path / "out", SMALL)
    assert "of its own" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_will_do(index: PairIndex, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".pack.json.partial").write_text("{")  # killed at once
    assert pack(index, tmp_path / "out").images == 6


def test_two_packs_into_one_folder(index: PairIndex, tmp_path: Path) -> None:
    second = Pack(index, tmp_path / "out", SMALL)

    def also(n: int, bad: int) -> None:
        with pytest.raises(UsageError, match="another process"):
            second.write()

    assert pack(index, tmp_path / "out", progress=also).images == 6


def test_shards_without_a_readable_image_are_left_out(tmp_path: Path) -> None:
    index = write_pairs(tmp_path / "data", {"a.jpg": b"no", "b.jpg": b"no", "c.jpg": b"no", "d.jpg": jpeg(20, 20)})
    report = pack(index, tmp_path / "out")
    assert (report.shards, report.images, report.failed) == (1, 1, 3)
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["00001.tar"]


def test_no_readable_image_at_all(tmp_path: Path) -> None:
    index = write_pairs(tmp_path / "data", {"a.jpg": b"", "b.jpg": b"no"})
    with pytest.raises(DataError, match="none of the 2 images can be read") as caught:
        pack(index, tmp_path / "out")
    assert "a.jpg: no such file" in (caught.value.hint or "")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_image_too_long_for_jpeg_is_listed(tmp_path: Path) -> None:
    index = write_pairs(tmp_path / "data", {"long.png": png(66_000, 2), "a.jpg": jpeg(20, 20)})
    assert pack(index, tmp_path / "out").failed == 1
    assert "66000 x 2 pixels cannot be written as JPEG" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_scenes_can_be_packed(tmp_path: Path) -> None:
    report = pack(read_pairs(["scenes:val:4"]), tmp_path / "out")
    assert (report.images, report.shards, report.copied) == (4, 2, 0)
