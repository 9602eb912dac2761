"""Files behind URLs of any fsspec scheme: what is there, and a local copy of it."""

from __future__ import annotations

import errno
import hashlib
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tcl.errors import UsageError, reason_of, without_secrets
from tcl.files.atomic import shared_file
from tcl.files.cache import CacheError, cache_folder, locked, make_room, size_limit, touch
from tcl.files.named import NotAllowed, check_named, is_free, socket_outside

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_CONNECT_SECONDS = _READ_SECONDS = 10  # of silence, after which a server counts as gone
_SLOW_SECONDS, _SLOW_BYTES = 60, 1000  # fewer bytes a second, after that time, are no download
MOST_BYTES = 1 << 30
"""Of a single image behind a URL."""
_PAUSES = (0.5, 2.0)  # seconds between attempts
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_GONE, _FORBIDDEN = (404, 410), (401, 403)  # what web servers answer
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "ssh": "paramiko",
    "sftp": "paramiko",
}
# What file systems call the things that change when a file does.
_STAMPS = ("ETag", "etag", "mtime", "last_modified", "LastModified", "Last-Modified", "updated", "created", "md5Hash")

_Result = TypeVar("_Result")


def is_url(name: str) -> bool:
    """Whether a name is a URL such as `s3://bucket/key`, not a path or a `scenes:` reference."""
    return ("://" in name or "::" in name) and _URL.match(name) is not None


def url_path(url: str) -> str:
    """The URL without the query of a web address, so that its last part is a file name."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def find(pattern: str) -> list[tuple[str, str]]:
    """URLs that match a glob, each with its stamp.

    Raises:
        OSError: the remote cannot be listed.
        UsageError: no package for this scheme is installed.
    """
    system, path = _open(pattern)
    found: dict[str, Any] = _attempt(pattern, lambda: system.glob(path, detail=True))
    files = {name: info for name, info in found.items() if info.get("type") != "directory"}
    return [(system.unstrip_protocol(name), _stamp(info)) for name, info in files.items()]


def stamp(url: str) -> str:
    """A text that changes when the file does: its size, and the date or checksum that the remote tells.

    Raises:
        OSError: it is not there, or cannot be reached.
        UsageError: no package for this scheme is installed.
    """
    system, path = _open(url)
    return _stamp(_attempt(url, lambda: system.info(path)))


def local_copy(url: str) -> Path:
    """Where the copy of a remote file is, once there is one."""
    digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
    suffix = re.search(r"\.[A-Za-z0-9]{1,10}$", url_path(url))
    return cache_folder() / "remote" / digest[:2] / (digest[:40] + (suffix[0] if suffix else ""))


def fetch_named(url: str, most: float = math.inf) -> Path:
    """`fetch` of what a file names: only what `tcl.files.named` lets it name.

    Args:
        url: as the file has it.
        most: bytes; a larger download is broken off.

    Raises:
        NotAllowed: it may not be named.
    """
    check_named(url)
    return fetch(url, most=most, guarded=not is_free(url))


def fetch(url: str, stamp: str | None = None, *, most: float = math.inf, guarded: bool = False) -> Path:
    """A local copy, downloaded whole where there is none.

    Several processes that ask for one file wait for one download. A download is tried three times, unless the server
    falls silent. It is broken off when it grows beyond what was announced, or what the cache folder may hold.

    Args:
        url: any scheme that fsspec knows.
        stamp: a copy of another stamp is replaced; without one, any copy counts.
        most: bytes; a larger download is broken off.
        guarded: refuse a web server that leads to this machine or one beside it.

    Raises:
        OSError: it cannot be downloaded.
        CacheError: the cache folder cannot be written to, as on a full disk.
        UsageError: no package for this scheme is installed.
    """
    target = local_copy(url)
    if _is_current(target, stamp):
        touch(target)
        return target
    with locked(f"remote-{target.name[:2]}"):
        if not _is_current(target, stamp):
            _download(url, target, stamp, most, guarded)
    make_room(target)
    return target


def _is_current(target: Path, stamp: str | None) -> bool:
    if stamp is None:
        return target.is_file()
    try:
        return target.is_file() and _stamp_file(target).read_text(encoding="utf-8") == stamp
    except (OSError, UnicodeDecodeError):
        return False


def _download(url: str, target: Path, stamp: str | None, most: float, guarded: bool) -> None:
    from fsspec.callbacks import Callback

    system, path = _open(url, guarded)
    expected = (stamp or "").partition(" ")[0]
    limit = int(expected) if expected.isdigit() else min(most, max(size_limit(), MOST_BYTES))

    class Bounded(Callback):
        """Ends a download that never would."""

        def __init__(self) -> None:
            super().__init__()
            self.arrived, self.began = 0, time.monotonic()

        def relative_update(self, inc: int = 1) -> None:
            self.arrived += inc
            seconds = time.monotonic() - self.began
            if self.arrived > limit:
                raise _Endless(f"broken off: more than {limit:,.0f} bytes arrived")
            if seconds > _SLOW_SECONDS and self.arrived < _SLOW_BYTES * seconds:
                raise _Endless(f"broken off: {self.arrived:,} bytes in {seconds:.0f} s")

    def copy(temporary: Path) -> None:
        system.get_file(path, str(temporary), callback=Bounded())
        size = temporary.stat().st_size
        if expected.isdigit() and size != int(expected):
            raise OSError(f"{size} of {expected} bytes arrived")
        if size > limit:  # of a file system that does not say how far it is
            raise _Endless(f"{size:,} bytes, more than {limit:,.0f}")

    try:
        _stamp_file(target).unlink(missing_ok=True)
        with shared_file(target) as temporary:
            _attempt(url, lambda: copy(temporary))
        if stamp is not None:
            with shared_file(_stamp_file(target)) as temporary:
                temporary.write_text(stamp, encoding="utf-8")
    except OSError as error:
        if error.errno is None or error.filename == url:  # as `_attempt` raises what goes wrong with the remote
            raise
        raise CacheError.of(url, error) from error


class _Endless(PermissionError):
    """A download that was broken off: trying again would not help."""


def _stamp_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.stamp")


def _open(url: str, guarded: bool = False) -> tuple[Any, str]:
    """The file system of a URL, made in this process (they do not survive a fork), and the path there."""
    import fsspec
    from fsspec.core import url_to_fs

    scheme = re.split(r"::|://", url, maxsplit=1)[0].lower()
    try:
        return url_to_fs(url, **_web_options(scheme, guarded))
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        hint = f"pip install {package}" if package else reason_of(error)
        raise UsageError(f"{url}: {scheme}:// needs a package that is not installed", hint=hint) from error
    except ValueError as error:
        if scheme not in fsspec.available_protocols():
            raise UsageError(f"{url}: unknown kind of URL '{scheme}'", hint="check what stands before ://") from error
        raise OSError(f"{url}: {reason_of(error)}") from error


def _web_options(scheme: str, guarded: bool) -> dict[str, Any]:
    """Options that let a large file take its time, while one that stops coming fails."""
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    options: dict[str, Any] = {"client_kwargs": {"timeout": timeout}}
    return options | {"get_client": _guarded_client} if guarded else options


async def _guarded_client(**options: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=socket_outside), **options)


def _attempt(url: str, action: Callable[[], _Result]) -> _Result:
    """Run what reads from a remote, again after a pause when it fails for a reason that may pass.

    A server that was waited for in vain is not waited for again.
    """
    began = time.monotonic()
    for pause in (*_PAUSES, None):
        try:
            return action()
        except Exception as error:  # each file system raises errors of its own
            failure = _failure(url, error)
            if isinstance(failure, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such file", url) from error
            if isinstance(failure, OSError) and failure.errno in _NO_SPACE:
                raise
            silent = isinstance(failure, TimeoutError) and time.monotonic() - began >= _READ_SECONDS
            if pause is None or silent or isinstance(failure, _FINAL) or _status(failure) in _FORBIDDEN:
                raise OSError(f"{without_secrets(url)}: {_reason(failure)}") from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _failure(url: str, error: Exception) -> Exception:
    """What went wrong: fsspec calls any answer of a web server, and none at all, a file that is not there."""
    for refusal in (error, error.__cause__):
        if isinstance(reason := getattr(refusal, "os_error", refusal), NotAllowed):
            return reason
    cause = error.__cause__
    web = isinstance(error, FileNotFoundError) and url.startswith(("http://", "https://"))
    return cause if web and isinstance(cause, Exception) and _status(cause) not in _GONE else error


def _reason(failure: Exception) -> str:
    unsaid = "timed out" if isinstance(failure, TimeoutError) else type(failure).__name__
    return without_secrets(" ".join(str(failure).split())) or unsaid


def _status(error: Exception) -> int | None:
    """Of an answer of a web server."""
    return getattr(error, "status", None)


def _stamp(info: dict[str, Any]) -> str:
    return " ".join(str(value) for value in (info.get("size"), *(info[key] for key in _STAMPS if info.get(key))))
