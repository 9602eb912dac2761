"""How a run tells of its progress; by default nobody listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Hears what a run does; this one keeps quiet."""

    def message(self, text: str) -> None:
        """Something worth a warning."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def reading(self, rows: int) -> None:
        """`rows` more rows of the data have been read."""

    def started(self, first_step: int, total_steps: int) -> None:
        """The loop begins after `first_step` steps that are done already."""

    def stepped(self, step: int) -> None:
        """`step` steps are done."""

    def logged(self, record: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl` was written."""
