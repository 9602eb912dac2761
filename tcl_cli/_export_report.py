"""What `tcl export` says of a verification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcl_cli._console import out as console

if TYPE_CHECKING:
    from export.verify.checks import Check


def show_checks(checks: Sequence[Check]) -> None:
    """The table, or that there is none."""
    if checks:
        show_table(checks)
    else:
        console.warning("not verified, as --no-verify asks; the bundle is marked unverified")


def show_table(checks: Sequence[Check]) -> None:
    """A line per output and precision, and one per check that failed before there were values."""
    rows: list[tuple[str, ...]] = [
        ("", "graph", "", "output", "cases", "max |diff|", "min cos", "mean cos", "top 10", "bound")
    ]
    for check in checks:
        state = "ok" if check.passed else "FAILED"
        if check.subject == "values" and check.output:
            cosines = ("" if value is None else f"{value:.6f}" for value in (check.min_cosine, check.mean_cosine))
            neighbours = "" if check.neighbours is None else f"{check.neighbours:.1%}"
            numbers = (f"{check.max_abs_diff:.1e}", *cosines, neighbours)
            rows.append((state, check.graph, check.precision, check.output, str(check.cases), *numbers, check.bound))
        elif not check.passed:
            rows.append((state, check.graph, check.precision, f"{check.subject}: {check.detail}", *[""] * 6))
    widths = [max(len(row[place]) for row in rows if row[4] or place < 3) for place in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.message("  " + "  ".join(cells).rstrip())
