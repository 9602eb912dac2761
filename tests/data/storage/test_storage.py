"""Remote files: one bounded local copy, whatever fails once, and a clear word about what fails always."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tcl.data.images.decode import ImageError, decode
from tcl.data.inputs.listing import list_inputs
from tcl.data.pairs.table import Pair, read_pairs
from tcl.data.storage.open import member_reference, open_binary
from tcl.errors import DataError, TclError, UsageError
from tcl.files import cache, named, remote
from tcl.files.cache import CacheError
from tests.data.sources.test_tar import jpeg, pack

DOWNLOADS: list[str] = []
FAILURES: list[Exception] = []
"""What the next downloads raise."""


class UnsteadyFileSystem(MemoryFileSystem):
    """`unsteady://`: files in memory, whose downloads are listed and fail when told to."""

    protocol = "unsteady"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("unsteady://"))

    def get_file(self, rpath: str, lpath: str, **options: object) -> None:
        DOWNLOADS.append(rpath)
        if FAILURES:
            Path(lpath).write_bytes(b"half")
            raise FAILURES.pop(0)
        super().get_file(rpath, lpath, **options)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.01))
    monkeypatch.setattr(cache, "_unseen", float("inf"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """A remote with `pairs.jsonl`, two shards and an image in `data/`."""
    fsspec.register_implementation("unsteady", UnsteadyFileSystem, clobber=True)
    system = fsspec.filesystem("unsteady")
    system.store.clear()
    DOWNLOADS.clear()
    FAILURES.clear()
    system.pipe("/data/a.jpg", jpeg(1))
    row = json.dumps({"image": "a.jpg", "caption": "a dog"})
    other = json.dumps({"image": "unsteady://data/../data/a.jpg", "caption": "a cat"})
    system.pipe("/data/pairs.jsonl", f"{row}\n{other}\n".encode())
    yield system
    system.store.clear()


def copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "remote").rglob("*") if path.is_file() and path.suffix != ".stamp"]


def add_shards(system: fsspec.AbstractFileSystem, folder: Path) -> None:
    for number in (2, 10):
        content = Path(pack(folder / "x.tar", [("k.jpg", jpeg(number)), ("k.txt", f"dog {number}")])).read_bytes()
        system.pipe(f"/data/{number}.tar", content)


def test_a_remote_manifest_and_its_images(bucket: fsspec.AbstractFileSystem, cache_folder: Path) -> None:
    index = read_pairs(["unsteady://data/pairs.jsonl"])
    assert index[0] == Pair("unsteady://data/a.jpg", ["a dog"], "a.jpg")
    assert decode(index[0].image).size == decode(index[0].image).size == (8, 8)
    assert DOWNLOADS == ["/data/pairs.jsonl", "/data/a.jpg"]
    assert read_pairs(["unsteady://data/pairs.jsonl"], images="unsteady://other")[0].image == "unsteady://other/a.jpg"
    assert len(DOWNLOADS) == 2 and len(copies(cache_folder)) == 2


@pytest.mark.parametrize("pattern", ["unsteady:///data/*.tar", "unsteady:///data/{10,2}.tar"])
def test_remote_shards_by_pattern(pattern: str, bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    add_shards(bucket, tmp_path)
    index = read_pairs([f"{pattern}@2"])
    assert [pair.captions for pair in index] == [["dog 2"], ["dog 10"]]
    assert [open_binary(pair.image).read() for pair in index] == [jpeg(2), jpeg(10)]
    assert index[0].image.startswith("unsteady:///data/2.tar!k.jpg@")
    assert DOWNLOADS == ["/data/2.tar", "/data/10.tar"]
    pack(tmp_path / "y.tar", [("k.jpg", jpeg(99)), ("k.txt", "a cat")])
    bucket.pipe("/data/2.tar", (tmp_path / "y.tar").read_bytes())
    assert open_binary(read_pairs([pattern])[0].image).read() == jpeg(99)


def test_a_file_that_changes_is_downloaded_again(bucket: fsspec.AbstractFileSystem) -> None:
    read_pairs(["unsteady://data/pairs.jsonl"])
    bucket.pipe("/data/pairs.jsonl", b'{"image": "b.jpg", "caption": "a bird"}\n')
    assert [pair.captions for pair in read_pairs(["unsteady://data/pairs.jsonl"])] == [["a bird"]]
    assert len(DOWNLOADS) == 2


def test_a_download_that_fails_once_succeeds(bucket: fsspec.AbstractFileSystem, cache_folder: Path) -> None:
    FAILURES.extend([ConnectionError("reset by peer"), TimeoutError()])
    assert len(read_pairs(["unsteady://data/pairs.jsonl"])) == 2
    assert len(DOWNLOADS) == 3
    assert [path.read_bytes()[:5] for path in copies(cache_folder)] == [b'{"ima']


def test_a_download_that_always_fails_is_named(bucket: fsspec.AbstractFileSystem, cache_folder: Path) -> None:
    FAILURES.extend([ConnectionError("reset\nby peer")] * 6)
    with pytest.raises(DataError, match=r"^unsteady://data/pairs\.jsonl: reset by peer$"):
        read_pairs(["unsteady://data/pairs.jsonl"])
    assert len(DOWNLOADS) == 3
    with pytest.raises(ImageError, match="reset by peer"):
        decode("unsteady://data/a.jpg")
    FAILURES.extend([PermissionError("forbidden")])
    with pytest.raises(ImageError, match="forbidden"):  # no use in trying again
        decode("unsteady://data/a.jpg")
    assert len(DOWNLOADS) == 7 and not copies(cache_folder)


def test_a_shard_that_is_gone_gives_an_unreadable_image(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    add_shards(bucket, tmp_path)
    index = read_pairs(["unsteady://data/*.tar"])
    decode(index[0].image)
    bucket.rm("/data/10.tar")
    for path in copies(Path(os.environ["TCL_CACHE"])):
        path.unlink()
    decode(index[0].image)  # fetched again
    with pytest.raises(ImageError, match=r"10\.tar!k\.jpg@.*: no such file"):
        decode(index[1].image)


@pytest.mark.parametrize(
    ("source", "error", "message", "hint"),
    [
        (
            "unsteady://data/absent.jsonl",
            UsageError,
            "no such file or folder: unsteady://data/absent.jsonl",
            "check the URL",
        ),
        ("unsteady://data/*.csv", UsageError, r"no files match unsteady://data/\*\.csv", "pattern"),
        ("unsteady://data", UsageError, "unknown data format", r"unsteady://data/*.tar"),
        ("nowhere://data/a.csv", UsageError, "unknown kind of URL 'nowhere'", "before ://"),
        ("abfs://data/a.csv", UsageError, "needs a package that is not installed", "pip install adlfs"),
    ],
)
def test_urls_that_lead_nowhere(
    source: str, error: type, message: str, hint: str, bucket: fsspec.AbstractFileSystem
) -> None:
    with pytest.raises(error, match=message) as caught:
        read_pairs([source])
    assert hint in str(caught.value.hint)


def test_the_cache_is_bounded_and_forgets_what_was_not_used(
    bucket: fsspec.AbstractFileSystem, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCL_CACHE_GB", "0.00001")  # 10,000 bytes
    for number in range(6):
        bucket.pipe(f"/data/{number}.bin", bytes([number]) * 3000)
        path = remote.fetch(f"unsteady://data/{number}.bin")
        os.utime(path, (0, time.time() - 1000 + number))
        if number == 2:
            open_file = open_binary("unsteady://data/1.bin")
            os.utime(open_file.fileno(), (0, 0))
            remote.fetch("unsteady://data/0.bin")  # used again
    kept = {path.read_bytes()[0] for path in copies(cache_folder)}
    assert kept == {0, 4, 5}
    with open_file:
        assert open_file.read() == b"\x01" * 3000  # gone from the folder, but still open here


def test_other_files_in_the_cache_folder_are_never_removed(
    bucket: fsspec.AbstractFileSystem, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [cache_folder / name for name in ("photo.jpg", "index/of-book.arrow", "remote/ab/notes.txt")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    monkeypatch.setenv("TCL_CACHE_GB", "0")
    for name in ("a.jpg", "pairs.jsonl"):
        remote.fetch(f"unsteady://data/{name}")
    assert len(copies(cache_folder)) == 2 and all(path.exists() for path in others)


def test_what_a_killed_download_left_is_cleared(bucket: fsspec.AbstractFileSystem, cache_folder: Path) -> None:
    left = cache_folder / "remote" / "ab" / f".{'ab' * 20}.jpg.x.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    remote.fetch("unsteady://data/a.jpg")
    assert left.exists()  # another process may be writing it
    os.utime(left, (0, 0))
    cache._unseen = float("inf")
    bucket.pipe("/data/b.jpg", jpeg(2))
    remote.fetch("unsteady://data/b.jpg")
    assert not left.exists()


def test_many_readers_share_one_download(bucket: fsspec.AbstractFileSystem) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(remote.fetch, ["unsteady://data/a.jpg"] * 16))
    assert len(paths) == len(DOWNLOADS) == 1
    umask = os.umask(0)
    os.umask(umask)
    assert paths.pop().stat().st_mode & 0o777 == 0o666 & ~umask  # others may use it too


def test_a_cache_folder_that_cannot_be_written_is_named(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match=r"cannot write to the cache folder .*file/cache: Not a directory"):
        read_pairs(["unsteady://data/pairs.jsonl"])
    for folder in ("/dev/full", "/proc/absent/cache"):  # below a file; where no folder can be made
        monkeypatch.setenv("TCL_CACHE", folder)
        for read in (open_binary, decode):  # no unreadable image, which would be replaced by another
            with pytest.raises(CacheError, match=f"cannot write to the cache folder {folder}: ") as caught:
                read("unsteady://data/a.jpg")
            assert "TCL_CACHE=" in str(caught.value.hint)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_not_tried_again(
    number: int, bucket: fsspec.AbstractFileSystem, cache_folder: Path
) -> None:
    for read in (open_binary, lambda _: read_pairs(["unsteady://data/pairs.jsonl"])):
        FAILURES.append(OSError(number, os.strerror(number)))
        with pytest.raises(CacheError) as caught:
            read("unsteady://data/a.jpg")
        assert f"cannot write to the cache folder {cache_folder}: {os.strerror(number)}" in caught.value.message
        assert "TCL_CACHE_GB (now 50)" in str(caught.value.hint) and "TCL_CACHE=" in str(caught.value.hint)
        again = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
        assert (type(again), again.message, again.hint) == (CacheError, caught.value.message, caught.value.hint)
    assert len(DOWNLOADS) == 2 and not copies(cache_folder)


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_malformed_size_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCL_CACHE_GB", text)
    with pytest.raises(UsageError, match=f"TCL_CACHE_GB={text}: not a size"):
        cache.size_limit()


def test_where_the_cache_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == Path(os.environ["TCL_CACHE"])
    monkeypatch.delenv("TCL_CACHE")
    assert cache.cache_folder() == tmp_path / "tcl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "tcl"


@pytest.mark.parametrize("below", ["", "tcl", "a/b"])
def test_a_cache_folder_that_another_user_made_in_a_shared_folder_is_refused(
    below: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shared" / "theirs").mkdir(parents=True)
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "shared" / "theirs" / below))
    owner = os.getuid() + 1000
    real = cache._owner
    monkeypatch.setattr(cache, "_owner", lambda path: owner if path.name == "theirs" else real(path))
    assert cache.cache_folder()  # its owner's folder, where others may write only what he lets them
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(CacheError, match=rf"shared/theirs belongs to another user \({owner}\)") as caught:
        open_binary("unsteady://data/a.jpg")
    assert "TCL_CACHE=" in str(caught.value.hint)
    monkeypatch.setattr(cache, "_owner", real)
    assert cache.cache_folder() == tmp_path / "shared" / "theirs" / below
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "shared" / "new"))
    assert cache.cache_folder() == tmp_path / "shared" / "new"


@pytest.mark.parametrize("member", ["a.jpg", "a!b@1+2.jpg", "sub/100%.jpg", "two\nlines.jpg", "@3+4"])
def test_references_are_plain_text_whatever_a_member_is_called(member: str, tmp_path: Path) -> None:
    shard = tmp_path / "odd!@1+1.tar"
    shard.write_bytes(b"0123456789")
    reference = member_reference(str(shard), member, 3, 4)
    assert open_binary(reference).read() == b"3456" and "\n" not in reference
    for wrong in (member_reference(str(shard), member, 8, 4), member_reference(str(shard), member, 0, 10**30)):
        with pytest.raises(OSError, match="is cut off: 10 bytes"):
            open_binary(wrong)


def test_an_index_of_urls_can_be_sent_to_another_process(bucket: fsspec.AbstractFileSystem) -> None:
    index = read_pairs(["unsteady://data/pairs.jsonl"])
    assert list(pickle.loads(pickle.dumps(index))) == list(index)


def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(remote, "_PAUSES", (60.0, 60.0))  # it is waited for once
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are taken, and never answered
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.jpg"
        named.allow(url)
        with pytest.raises(ImageError, match=f"{url}: timed out"):
            decode(url)


def test_a_server_that_cannot_be_reached_is_not_a_path_that_is_wrong() -> None:
    pytest.importorskip("aiohttp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/pairs.jsonl"
    for read in (read_pairs, lambda sources: list_inputs(sources[0])):  # closed by now: connections are refused
        with pytest.raises(DataError, match=f"^{url}: Cannot connect to host") as caught:
            read([url])
        assert "check that it can be reached" in str(caught.value.hint)


class Answer(BaseHTTPRequestHandler):
    """`/404/a.jsonl` answers 404, and so on."""

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "error", "message", "hint"),
    [
        (404, UsageError, "no such file or folder: http", "check the URL"),
        (410, UsageError, "no such file or folder: http", "check the URL"),
        (403, DataError, "a.jsonl: 403, message='Forbidden'", "may be read"),
        (500, DataError, "a.jsonl: 500, message='Internal Server Error'", "can be reached"),
    ],
)
def test_what_a_server_answers(status: int, error: type[TclError], message: str, hint: str) -> None:
    pytest.importorskip("aiohttp")
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(error, match=message) as caught:
            read_pairs([f"http://127.0.0.1:{server.server_port}/{status}/a.jsonl"])
        server.shutdown()
        thread.join()
    assert hint in str(caught.value.hint)
