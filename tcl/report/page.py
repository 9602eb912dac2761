"""`report.html` of a run: one file with everything in it, for a browser, a mail or an archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcl.errors import without_secrets
from tcl.files.atomic import write_whole
from tcl.files.pages import page
from tcl.report.charts import format_figure
from tcl.report.curves import (
    FEATURES,
    OPTIMISATION,
    SPEED,
    Series,
    curves,
    figure_charts,
    loss_charts,
    validation_charts,
)
from tcl.report.records import read_records
from tcl.version import versions

REPORT_FILE = "report.html"
SHOWN = 10  # unreadable samples that are listed
LONGEST = 1000  # characters of a caption, a path or a message


@dataclass
class ReportSample:
    """A pair, and the captions that the model finds nearest to its image.

    Attributes:
        thumbnail: the image, as a small JPEG or PNG file.
        caption: its own caption.
        by_vectors: captions with their cosine, best first.
        by_matching: captions with their probability of a match, best first.
    """

    thumbnail: bytes
    caption: str
    by_vectors: list[tuple[str, float]] = field(default_factory=list)
    by_matching: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class LabelSample:
    """A row of a task with labels, and what the model says of it.

    Attributes:
        thumbnails: its image, or both.
        text: the question, statement or phrase.
        truth: the right labels or answers.
        predicted: labels with their probability, best first.
        note: what else there is to say.
    """

    thumbnails: list[bytes]
    text: str
    truth: list[str] = field(default_factory=list)
    predicted: list[tuple[str, float]] = field(default_factory=list)
    note: str = ""


Sample = ReportSample | LabelSample


def write_report(run: Path, samples: Sequence[Sample] = (), *, published: bool = True) -> Path:
    """Write `report.html` from what a run folder holds; what is missing or cut short is left out.

    Args:
        run: the run's folder.
        samples: pairs to show, or rows of a task with labels.
        published: draw the published loss of each epoch beside the same losses of this run.
    """
    records = read_records(run / "metrics.jsonl")
    warnings, bad = read_records(run / "warnings.jsonl"), read_records(run / "bad_samples.jsonl")
    training = curves([record for record in records if "loss" in record])
    validation = curves([record for record in records if "loss" not in record])
    state = "finished" if (run / "model" / "config.json").is_file() else "not finished"
    counts = [("warnings", f"{len(warnings):,}"), ("unreadable samples", f"{len(bad):,}")]
    text = page(
        Path(__file__).with_name("report.html"),
        title=run.resolve().name,
        longest=LONGEST,
        shown=SHOWN,
        summary=[("state", state), *_latest(training, validation), *counts],
        warnings=warnings,
        charts=[
            ("Loss by term", loss_charts(training, published)),
            ("Validation", validation_charts(validation)),
            ("Optimisation", figure_charts(training, OPTIMISATION)),
            ("Features", figure_charts(training, FEATURES)),
            ("Speed", figure_charts(training, SPEED)),
        ],
        pairs=[each for each in samples if isinstance(each, ReportSample)],
        labelled=[each for each in samples if isinstance(each, LabelSample)],
        bad=bad,
        settings=_settings(run / "config.yaml"),
        versions=versions(),
    )
    path = run / REPORT_FILE
    write_whole(path, "".join(text).encode("utf-8", "replace").decode("utf-8"))  # names of files may be no Unicode
    return path


def _latest(training: Series, validation: Series) -> Iterator[tuple[str, str]]:
    """The figures that say at a glance how far a run is and how good."""
    if not training:
        yield "metrics", "none as yet"
    for key in ("step", "epoch", "loss"):
        if key in training:
            yield key, format_figure(training[key][-1][1])
    if "val_r_mean" in validation:
        yield "best mean recall", f"{max(value for _, value in validation['val_r_mean']):.1f} %"


def _settings(path: Path) -> str:
    try:
        return without_secrets(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
