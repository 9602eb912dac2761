"""What this process has open."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def open_files(folder: Path) -> list[int]:
    """Descriptors of what jobs work on under a folder, though it was removed; none where the system does not tell."""
    found, place = [], Path("/proc/self/fd")
    for entry in place.iterdir() if place.exists() else ():
        with suppress(OSError):  # the one that lists them
            name = os.readlink(entry)
            if name.startswith(f"{folder}{os.sep}") and f".partial{os.sep}" in name:
                found.append(int(entry.name))
    return found
