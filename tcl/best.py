"""The best model of a run so far, as `best.json` has it. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tcl.report.records import read_records

BEST_FILE = "best.json"
BEST_FOLDER = "best"
METRICS_FILE = "metrics.jsonl"


def read_best(run: Path, step: int) -> dict[str, Any] | None:
    """The best validation of a run that goes on from `step`: its step, the metric and its value.

    One past that step does not count. The run computes that step again, and everything before it was less good.
    """
    for record in read_records(run / BEST_FILE):
        if record["step"] <= step:
            return record
    return None


def count_stale(run: Path, step: int) -> int:
    """Validations after the best one, up to `step`: so many in a row were no better."""
    best = read_best(run, step)
    if best is None:
        return 0
    metric = f"val_{best['metric']}"
    return sum(
        metric in record and best["step"] < record["step"] <= step for record in read_records(run / METRICS_FILE)
    )
