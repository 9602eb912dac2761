"""A file of data names images; it reaches nothing else on this machine, around it, or with the user's keys."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tcl.data.images.decode import ImageError, decode
from tcl.data.inputs.listing import list_inputs
from tcl.data.pairs.table import read_pairs
from tcl.data.storage.open import member_reference
from tcl.data.storage.parquet_cells import cell_reference, open_image
from tcl.errors import UsageError, without_secrets
from tcl.files import named, remote
from tests.data.files import png

ATTACKS = (
    "reference://x::file.json",
    "simplecache::http://example.invalid/a.png",
    "zip://a.png::s3://bucket/x.zip",
    "reference://a.png",
    "http://example.com/a.png?x::file:///etc/passwd",
    "file:///etc/passwd",
    "local:///etc/passwd",
    "ssh://host/a.png",
    "sftp://host/a.png",
    "github://org:repo@/a.png",
    "http://127.0.0.1:1/a.png",
    "http://localhost/a.png",
    "http://a.localhost./a.png",
    "http://[::1]/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://169.254.169.254/latest/meta-data",
    "http://0.0.0.0/a.png",
    "http://user:secret@127.0.0.1/a.png",
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that is refused is handed to fsspec at all."""

    def reached(url: str, *_: object) -> None:
        raise AssertionError(f"fsspec was asked for {url}")

    monkeypatch.delenv("TCL_URLS")
    monkeypatch.setenv("TCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_open", reached)


@pytest.mark.parametrize("url", ATTACKS)
def test_what_a_file_may_not_name(url: str, no_network: None, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": url, "caption": "a dog"}))
    (tmp_path / "images.lst").write_text(url)
    (reference,) = (pair.image for pair in read_pairs([str(tmp_path / "rows.jsonl")]))
    listed = [list_inputs(str(tmp_path / name), "image").location(0) for name in ("rows.jsonl", "images.lst")]
    for name in (reference, *listed):
        with pytest.raises(
            ImageError, match=r"a file (may not )?names?|for a file that names it|a file may name"
        ) as caught:
            decode(name)
        assert "secret" not in caught.value.message
    for name in (member_reference(f"{url}.tar", "a.png", 0, 4), cell_reference(f"{url}.parquet", "image", 0)):
        with pytest.raises(named.NotAllowed):
            open_image(name)


@pytest.mark.parametrize("scheme", named.SCHEMES)
def test_what_a_file_may_name(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TCL_URLS")
    named.check_named(f"{scheme}://bucket/a.png")
    named.check_named(f"{scheme}://bucket/a.png?time=12:00&b=a:b")


def test_what_the_user_names_may_be_named_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCL_URLS", "")
    named.allow("http://user:password@127.0.0.1:8000/pairs.csv")
    named.allow("sftp://store/pairs.csv")
    named.allow("http://example.com/pairs.csv")  # may be named anyway
    named.allow("zip://a.csv::sftp://other/a.zip")
    assert os.environ["TCL_URLS"].split() == ["http://127.0.0.1:8000", "sftp://store"]
    named.check_named("http://127.0.0.1:8000/a.png")
    named.check_named("sftp://store/a.png")
    for other in ("http://127.0.0.1:8001/a.png", "sftp://other/a.png", "zip://a.png::sftp://store/a.zip"):
        with pytest.raises(named.NotAllowed):
            named.check_named(other)


class _Server(BaseHTTPRequestHandler):
    """`/to/URL` leads to that URL, `/endless` never ends, anything else is an image."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.wfile.write(png(4, 4))
            while self.path == "/endless":
                self.wfile.write(bytes(1 << 16))
        except ConnectionError:
            pass

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def _serving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_redirect_to_this_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("TCL_CACHE", str(tmp_path))
    outside = named.socket_outside
    with _serving() as host:
        # 127.0.0.1 stands for a server on the web here, and 127.0.0.2 for this machine.
        monkeypatch.setattr(named, "check_named", lambda url: None)
        monkeypatch.setattr(remote, "check_named", lambda url: None)
        monkeypatch.setattr(named, "_is_local", lambda address: address == "127.0.0.2")
        monkeypatch.setattr(remote, "_PAUSES", (60.0,))  # trying again would not help, and is not done
        assert decode(f"http://{host}/a.png").size == (4, 4)
        assert decode(f"http://{host}/to/http://{host}/b.png").size == (4, 4)
        with pytest.raises(ImageError, match=r"leads to 127\.0\.0\.2, on this machine or beside it"):
            decode(f"http://{host}/to/http://{host.replace('0.1:', '0.2:')}/a.png")
    assert outside is remote.socket_outside


def test_an_endless_download_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("TCL_CACHE", str(tmp_path))
    monkeypatch.setattr("tcl.data.storage.open.MOST_BYTES", 1 << 20)
    monkeypatch.setattr(remote, "_PAUSES", (60.0,))
    with _serving() as host:
        named.allow(f"http://{host}/")
        with pytest.raises(ImageError, match="broken off: more than 1,048,576 bytes arrived"):
            decode(f"http://{host}/endless")
    assert not [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]


def test_a_download_that_hardly_moves_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("TCL_CACHE", str(tmp_path))
    monkeypatch.setattr(remote, "_SLOW_SECONDS", -1)
    monkeypatch.setattr(remote, "_SLOW_BYTES", 1e15)
    with _serving() as host:
        named.allow(f"http://{host}/")
        with pytest.raises(ImageError, match=r"broken off: [0-9]+ bytes in 0 s"):
            decode(f"http://{host}/a.png")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a.png?token=abc&width=5", "https://host/a.png?token=***&width=5"),
        ("https://user:pass@host/a.png", "https://***@host/a.png"),
        ("https://ghp_abc@host/a.png", "https://***@host/a.png"),
        ("s3://id:secret@bucket/a.png", "s3://id:***@bucket/a.png"),
        (
            "https://h/a?X-Amz-Signature=ab12&X-Amz-Credential=x/y&p=1",
            "https://h/a?X-Amz-Signature=***&X-Amz-Credential=***&p=1",
        ),
        ("https://h/a?sv=1&sig=a%2Bb%3D&key=k&access_token=t", "https://h/a?sv=1&sig=***&key=***&access_token=***"),
        ("cannot read https://h/a?token=abc: timed out", "cannot read https://h/a?token=***: timed out"),
        ("https://h/a.tar?sig=abc!cat.png@512+10", "https://h/a.tar?sig=***!cat.png@512+10"),
        ("https://h/a?api_key=abc and http://u:p@h/b", "https://h/a?api_key=*** and http://***@h/b"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown == without_secrets(shown)
    assert UsageError(text, text).message == UsageError("", text).hint == shown


@pytest.mark.parametrize(
    "text",
    [
        "a dog?token=abc",
        "abfs://container@account.dfs.core.windows.net/a.png",
        "sftp://user@host/a.png",
        "https://host/@user/a.png?width=5&monkey=1#key",
        "s3://bucket/key=3/token=4/a@b.png",
        "https://host/a::b@c.png",
    ],
)
def test_what_is_no_credential_is_shown(text: str) -> None:
    assert without_secrets(text) == text


def test_ids_hold_no_credentials_and_images_are_still_found(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/secret/a.png?token=abc", png(4, 4))
    (tmp_path / "images.lst").write_text("memory://secret/a.png?token=abc\nplain.png")
    (tmp_path / "rows.csv").write_text("image\nmemory://secret/a.png?token=abc\n")
    for name, ids in (
        ("images.lst", ["memory://secret/a.png?token=***", "plain.png"]),
        ("rows.csv", ["memory://secret/a.png?token=***"]),
    ):
        inputs = list_inputs(str(tmp_path / name), "image")
        assert list(inputs.ids) == ids
        assert decode(inputs.location(0)).size == (4, 4)


def test_pairs_and_lists_of_bad_rows_hold_no_credentials(tmp_path: Path) -> None:
    rows = [
        {"image": "https://host/a.png?token=S3CR3T", "caption": "a dog"},
        {"image": "https://user:S3CR3T@host/b.png", "caption": "a cat", "image_id": "https://host/b?key=S3CR3T"},
        {"image": "https://host/c.png?token=S3CR3T"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = read_pairs([str(tmp_path / "rows.jsonl")])
    assert [pair.image_id for pair in index] == ["https://host/a.png?token=***", "https://host/b?key=***"]
    assert index[0].image == rows[0]["image"]  # by which it is opened
    assert index.skipped == 1 and "S3CR3T" not in str(index.skipped_reasons)
