"""The two packages of TensorRT behind one interface, and what they say when something fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from tcl.errors import MissingExtraError

Flavour = Literal["tensorrt", "rtx"]
PACKAGES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
EXTRAS: dict[Flavour, str] = {"tensorrt": "trt", "rtx": "trt-rtx"}

_ECHO = re.compile(r"catchCudaError|Thread context has not been set")
_SOURCE = re.compile(r"( In \S+)? at /\S+:\d+\)?|^\S+\.cpp:\d+: ")


class Messages:
    """What TensorRT logs: its calls return None or False, and say why only here."""

    def __init__(self) -> None:
        self._kept: list[list[str]] = []

    def add(self, text: str) -> None:
        """Keep a message for whoever listens."""
        for kept in self._kept:
            kept.append(text)

    @contextmanager
    def kept(self) -> Iterator[list[str]]:
        """A list that takes every error while the block runs."""
        kept: list[str] = []
        self._kept.append(kept)
        try:
            yield kept
        finally:
            self._kept = [other for other in self._kept if other is not kept]


def one_line(messages: list[str]) -> str:
    """The first message that says something, at most 300 characters."""
    telling = [text for text in messages if not _ECHO.search(text)] or messages or ["it does not say why"]
    return " ".join(_SOURCE.sub("", telling[0].splitlines()[0]).split())[:300]


@dataclass(frozen=True)
class Package:
    """An installed TensorRT.

    Attributes:
        flavour: `tensorrt` for data centres, which builds on the GPU that it builds for, or `rtx`, which needs none.
        trt: its module.
        version: of it.
        logger: passed to everything that is made.
        messages: what came in through it.
    """

    flavour: Flavour
    trt: Any
    version: str
    logger: Any
    messages: Messages

    @property
    def title(self) -> str:
        """Its name and version."""
        return f"{TITLES[self.flavour]} {self.version}"

    @property
    def major(self) -> int:
        """The first number of its version."""
        return int(self.version.partition(".")[0])


def open_package(flavour: Flavour | Literal["auto"] = "auto") -> Package:
    """An installed TensorRT; `auto` prefers that for data centres.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
    """
    wanted: list[Flavour] = ["tensorrt", "rtx"] if flavour == "auto" else [flavour]
    for name in wanted:
        try:
            return _opened(name, import_module(PACKAGES[name]))
        except (ImportError, OSError):  # the second for a CUDA library that it lacks
            continue
    missing = MissingExtraError(" or ".join(PACKAGES[name] for name in wanted), EXTRAS[wanted[0]])
    if flavour == "auto":
        missing.hint = f"{missing.hint}, or '.[trt-rtx]', which builds without a GPU"
    raise missing


@cache
def _opened(flavour: Flavour, trt: Any) -> Package:
    """Once for each: TensorRT keeps the first logger of a process and ignores all others."""
    messages = Messages()

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            # That a profile goes beyond what the graph can do is only a warning, and its engine fails when used.
            levels = trt.ILogger.Severity
            if severity in (levels.INTERNAL_ERROR, levels.ERROR) or msg.startswith("Profile k"):
                messages.add(msg)

    return Package(flavour, trt, str(trt.__version__), Logger(), messages)
