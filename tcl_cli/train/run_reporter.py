"""A run's progress on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tcl.training.reporter import Reporter
from tcl_cli._console import Advance, out

if TYPE_CHECKING:
    from tcl.training.footprint import Footprint
    from tcl.training.trainer import Training

SHOWN = ("loss", "contrastive", "itm", "mlm", "accuracy")  # beside the bar, where there; metrics.jsonl has every part


class ConsoleReporter(Reporter):
    """A run's progress on the terminal; its display ends with `with`. Of several processes only the first speaks."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._display = ExitStack()
        self._advance: Advance | None = None
        self._step = 0

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    def message(self, text: str) -> None:
        """Something worth a warning."""
        if not self._quiet:
            out.warning(text)

    def note(self, text: str) -> None:
        """Something worth a line."""
        if not self._quiet:
            out.message(text)

    def reading(self, rows: int) -> None:
        """Show how many rows of the data have been read."""
        if self._quiet:
            return
        if self._advance is None:
            self._begin("Indexing", None, 0)
        assert self._advance
        self._advance(rows)

    def measure(self, training: Training) -> Footprint:
        """Measure what the training will take; with a large model on a CPU this takes a while."""
        self._display.close()
        self._advance = None
        if self._quiet:
            return training.footprint()
        with out.progress("Measuring a step") as advance:
            return training.footprint(advance)

    def started(self, first_step: int, total_steps: int) -> None:
        """Begin the progress display."""
        self._step = first_step
        if not self._quiet:
            self._begin("Training", total_steps, first_step)

    def _begin(self, what: str, total: int | None, initial: int) -> None:
        self._display.close()
        self._advance = self._display.enter_context(out.progress(what, total=total, initial=initial))

    def stepped(self, step: int) -> None:
        """Move it."""
        if self._advance:
            self._advance(step - self._step)
        self._step = step

    def logged(self, record: Mapping[str, Any]) -> None:
        """Show the losses; print validation results, which should stay in sight."""
        if self._advance and "loss" in record:
            speed = record.get("samples_per_second")
            shown = {name: record[name] for name in SHOWN if name in record}
            self._advance(0, **shown, **({"samples/s": speed} if speed else {}))
        elif "val_r_mean" in record and not self._quiet:
            recalls = {
                way: " / ".join(f"{record[f'val_{way}_r{k}']:.1f}" for k in (1, 5, 10)) for way in ("t2i", "i2t")
            }
            ways = f"text to image {recalls['t2i']}  image to text {recalls['i2t']}"
            out.message(f"step {record['step']:>6}  R@1/5/10 %  {ways}")
        elif "val_accuracy" in record and not self._quiet:
            out.message(f"step {record['step']:>6}  accuracy {record['val_accuracy']:.1f} %")
