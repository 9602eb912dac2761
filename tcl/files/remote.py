"""Files behind URLs of any fsspec scheme: what is there, and a local copy of it."""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tcl.errors import UsageError, reason_of
from tcl.files.atomic import shared_file
from tcl.files.cache import CacheError, cache_folder, locked, make_room, touch

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_CONNECT_SECONDS, _READ_SECONDS = 30, 60  # of silence, after which a server counts as gone
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


def fetch(url: str, stamp: str | None = None) -> Path:
    """A local copy, downloaded whole where there is none.

    Several processes that ask for one file wait for one download. A download is tried three times.

    Args:
        url: any scheme that fsspec knows.
        stamp: a copy of another stamp is replaced; without one, any copy counts.

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
            _download(url, target, stamp)
    make_room(target)
    return target


def _is_current(target: Path, stamp: str | None) -> bool:
    if stamp is None:
        return target.is_file()
    try:
        return target.is_file() and _stamp_file(target).read_text(encoding="utf-8") == stamp
    except (OSError, UnicodeDecodeError):
        return False


def _download(url: str, target: Path, stamp: str | None) -> None:
    system, path = _open(url)

    def copy(temporary: Path) -> None:
        system.get_file(path, str(temporary))
        size, expected = temporary.stat().st_size, (stamp or "").partition(" ")[0]
        if expected.isdigit() and size != int(expected):
            raise OSError(f"{size} of {expected} bytes arrived")

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


def _stamp_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.stamp")


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, made in this process (they do not survive a fork), and the path there."""
    import fsspec
    from fsspec.core import url_to_fs

    scheme = re.split(r"::|://", url, maxsplit=1)[0].lower()
    try:
        return url_to_fs(url, **_patience(scheme))
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        hint = f"pip install {package}" if package else reason_of(error)
        raise UsageError(f"{url}: {scheme}:// needs a package that is not installed", hint=hint) from error
    except ValueError as error:
        if scheme not in fsspec.available_protocols():
            raise UsageError(f"{url}: unknown kind of URL '{scheme}'", hint="check what stands before ://") from error
        raise OSError(f"{url}: {reason_of(error)}") from error


def _patience(scheme: str) -> dict[str, Any]:
    """Options that let a large file take its time, while one that stops coming fails."""
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def _attempt(url: str, action: Callable[[], _Result]) -> _Result:
    """Run what reads from a remote, again after a pause when it fails for a reason that may pass."""
    for pause in (*_PAUSES, None):
        try:
            return action()
        except Exception as error:  # each file system raises errors of its own
            failure = _failure(url, error)
            if isinstance(failure, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such file", url) from error
            if isinstance(failure, OSError) and failure.errno in _NO_SPACE:
                raise
            if pause is None or isinstance(failure, _FINAL) or _status(failure) in _FORBIDDEN:
                raise OSError(f"{url}: {_reason(failure)}") from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _failure(url: str, error: Exception) -> Exception:
    """What went wrong: fsspec calls any answer of a web server, and none at all, a file that is not there."""
    cause = error.__cause__
    web = isinstance(error, FileNotFoundError) and url.startswith(("http://", "https://"))
    return cause if web and isinstance(cause, Exception) and _status(cause) not in _GONE else error


def _reason(failure: Exception) -> str:
    unsaid = "timed out" if isinstance(failure, TimeoutError) else type(failure).__name__
    return " ".join(str(failure).split()) or unsaid


def _status(error: Exception) -> int | None:
    """Of an answer of a web server."""
    return getattr(error, "status", None)


def _stamp(info: dict[str, Any]) -> str:
    return " ".join(str(value) for value in (info.get("size"), *(info[key] for key in _STAMPS if info.get(key))))
