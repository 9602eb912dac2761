"""How this process was started, as `torchrun` says in the environment."""

from __future__ import annotations

import os


def launched() -> bool:
    """Was this process started as one of several?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def starts() -> int:
    """How often `torchrun` has started this run again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def restarted() -> bool:
    """Has `torchrun --max-restarts` started this run again, after one of its processes was lost?"""
    return starts() > 0
