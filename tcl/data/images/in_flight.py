"""Very large images wait for one another, so that a few of them at once do not fill the memory.

A thread waits before it decodes, until the large images that others have decoded and still use leave room. One image
alone is never too large here, and a thread that holds one does not wait for itself.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import Counter
from contextlib import suppress

from PIL import Image

LARGE = 32_000_000
"""Pixels from which on an image counts: 0.13 GB as RGB, and as much again where it is converted."""

ROOM = 128_000_000
"""Pixels of large images that are decoded at once, unless it is one."""

_LONGEST_WAIT = 60.0  # seconds: whoever keeps large images only slows others down


class Room:
    """Room for the pixels of large images.

    Args:
        pixels: how many there may be.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._used = 0
        self._held: Counter[int] = Counter()  # by thread
        self._changed = threading.Condition(threading.RLock())  # an image may be let go of anywhere, in here too

    def enter(self, pixels: int) -> int:
        """Wait for room and take it; gives the thread that has it."""
        thread = threading.get_ident()
        with self._changed:
            self._changed.wait_for(
                lambda: not self._used or self._held[thread] or self._used + pixels <= self._pixels, _LONGEST_WAIT
            )
            self._used += pixels
            self._held[thread] += 1
        _trim()
        return thread

    def leave(self, pixels: int, thread: int) -> None:
        """Give it back."""
        with self._changed:
            self._used -= pixels
            self._held[thread] -= 1
            self._changed.notify_all()

    def leave_with(self, image: Image.Image, pixels: int, thread: int) -> None:
        """Give it back when nobody uses the image any more."""
        weakref.finalize(image, self.leave, pixels, thread).atexit = False


def _trim() -> None:
    """Give back to the system what earlier images had: glibc keeps it for the thread that let go of it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


room = Room(ROOM)
