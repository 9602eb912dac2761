"""What a file of data may name: images on the web and in object stores, and nothing else behind a URL.

A cell of a table, a line of a list, a reference in JSON and an id beside vectors were written by whoever made the file.
fsspec would open for them whatever it has a scheme for: local files, archives in archives (`a::b`), other machines by
ssh. So URLs in files are of the schemes in `SCHEMES`, and not on this machine or next to it (loopback, link-local),
where services trust whoever reaches them. What the user names is free, and what is beside it: `allow` adds it to
`$TCL_URLS`, which child processes inherit.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Of URLs in files."""

VARIABLE = "TCL_URLS"
_HINT = f"where you trust the file, allow it: {VARIABLE}="


class NotAllowed(PermissionError):
    """A URL that a file names and may not name.

    Args:
        reason: one line, without the URL.
        place: scheme and host, as `$TCL_URLS` takes them; None where nothing allows it.
    """

    def __init__(self, reason: str, place: str | None = None) -> None:
        super().__init__(f"{reason}; {_HINT}{place}" if place else reason)


def allow(url: str) -> None:
    """Let the files that this process and its children read name what is on the host of a URL that the user named."""
    try:
        check_named(url)
    except NotAllowed:
        if "::" not in url and (place := _place(url)) not in _allowed():
            os.environ[VARIABLE] = " ".join([*_allowed(), place])


def check_named(url: str) -> None:
    """Refuse a URL that a file may not name.

    Raises:
        NotAllowed: of this scheme, on this machine, or a chain of URLs.
    """
    if "::" in url:  # fsspec takes a chain apart wherever it stands, in a query too
        raise NotAllowed("a chain of URLs (::) is not opened for a file that names it")
    place = _place(url)
    scheme, _, host = place.partition("://")
    if place in _allowed() or scheme in _allowed():
        return
    if scheme == "file":
        raise NotAllowed("a file names paths as they are, without file://", place)
    if scheme not in SCHEMES:
        raise NotAllowed(f"a file may name URLs of {', '.join(SCHEMES)}, not of {scheme}", place)
    if scheme in ("http", "https") and _is_local_name(host):
        raise NotAllowed("a file may not name what is on this machine or beside it", place)


def is_free(url: str) -> bool:
    """Whether the host of a URL was allowed, so that it may lead to this machine too."""
    place = _place(url)
    return place in _allowed() or place.partition("://")[0] in _allowed()


def socket_outside(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that is neither on this machine nor beside it, of `getaddrinfo`'s five parts.

    The place where every way leads through: names, numbers in any spelling, and redirects to either.

    Raises:
        NotAllowed: it is.
    """
    family, kind, protocol, _, (host, *_) = address
    if _is_local(host):
        raise NotAllowed(f"it leads to {host}, on this machine or beside it")
    return socket.socket(family, kind, protocol)


def _allowed() -> list[str]:
    return os.environ.get(VARIABLE, "").split()


def _place(url: str) -> str:
    """Scheme and host, with its port, without credentials."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{re.split('[/?#]', rest, maxsplit=1)[0].rpartition('@')[2].lower()}"


def _is_local_name(host: str) -> bool:
    """Whether a host, with its port, names this machine or one beside it; others show when they are connected to."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return True
    return name.rstrip(".") == "localhost" or name.rstrip(".").endswith(".localhost") or _is_local(name)


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_link_local or address.is_unspecified
