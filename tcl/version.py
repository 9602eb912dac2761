"""The version of this package, and of those it stands on."""

from __future__ import annotations

__version__ = "0.1.0"
