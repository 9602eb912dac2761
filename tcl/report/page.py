"""`report.html` of a run: one file with everything in it, for a browser, a mail or an archive."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tcl.files.atomic import write_whole
from tcl.report.charts import format_figure
from tcl.report.curves import (
    FEATURES,
    OPTIMISATION,
    SPEED,
    Records,
    Series,
    curves,
    figure_charts,
    loss_charts,
    validation_charts,
)
from tcl.report.records import read_records
from tcl.report.rows import LabelSample, ReportSample, Sample
from tcl.version import versions

REPORT_FILE = "report.html"
STYLE = Path(__file__).with_name("report.css")
SHOWN = 10  # unreadable samples that are listed
LONGEST = 1000  # characters of a caption, a path or a message


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
    sections = [
        _summary(training, validation, warnings, bad, finished=(run / "model" / "config.json").is_file()),
        _section("Warnings", _warnings(warnings)),
        _section("Loss by term", loss_charts(training, published)),
        _section("Validation", validation_charts(validation)),
        _section("Optimisation", figure_charts(training, OPTIMISATION)),
        _section("Features", figure_charts(training, FEATURES)),
        _section("Speed", figure_charts(training, SPEED)),
        _section(
            "Pairs and their nearest captions", _samples([each for each in samples if isinstance(each, ReportSample)])
        ),
        _section("Validation samples", _labelled([each for each in samples if isinstance(each, LabelSample)])),
        _section("Samples that could not be read", _bad_samples(bad)),
        _section("Settings", _settings(run / "config.yaml")),
        _section("Versions", _table([[escape(name), escape(version)] for name, version in versions().items()])),
    ]
    name = escape(run.resolve().name)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"<h1>{name}</h1>{''.join(sections)}</main></body></html>\n"
    )
    path = run / REPORT_FILE
    write_whole(path, page.encode("utf-8", "replace").decode("utf-8"))  # file names may hold what is no Unicode
    return path


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    return "<table>" + "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows) + "</table>"


def _summary(training: Series, validation: Series, warnings: Records, bad: Records, finished: bool) -> str:
    tiles = [("state", "finished" if finished else "not finished")]
    if training:
        tiles += [(key, format_figure(training[key][-1][1])) for key in ("step", "epoch", "loss") if key in training]
    else:
        tiles.append(("metrics", "none as yet"))
    if "val_r_mean" in validation:
        tiles.append(("best mean recall", f"{max(value for _, value in validation['val_r_mean']):.1f} %"))
    tiles += [("warnings", f"{len(warnings):,}"), ("unreadable samples", f"{len(bad):,}")]
    items = [f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles]
    return f'<dl class="tiles">{"".join(items)}</dl>'


def _warnings(warnings: Records) -> str:
    items = [
        f"<li><b>step {_text(each.get('step', '?'))}</b> {_text(each.get('message', ''))}</li>" for each in warnings
    ]
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else ""


def _samples(samples: Sequence[ReportSample]) -> str:
    articles = [
        f'<article><img alt="" src="{_data_url(sample.thumbnail)}"><div><p>{_text(sample.caption)}</p>'
        f'<div class="nearest">{_nearest("by vectors: cosine", sample.by_vectors, sample.caption)}'
        f"{_nearest('by matching: probability', sample.by_matching, sample.caption)}</div></div></article>"
        for sample in samples
    ]
    return (
        "<p>The captions found nearest to each image; its own one is green.</p>" + "".join(articles) if articles else ""
    )


def _labelled(samples: Sequence[LabelSample]) -> str:
    articles = [
        f"<article>{''.join(map(_image, sample.thumbnails))}"
        f'<div><p>{_text(sample.text)}</p><div class="nearest">'
        f"{_nearest('predicted: probability', sample.predicted, *sample.truth)}"
        f"<div>{_truth(sample)}</div></div></div></article>"
        for sample in samples
    ]
    return "<p>What the model says; the right one is green.</p>" + "".join(articles) if articles else ""


def _image(image: bytes) -> str:
    return f'<img alt="" src="{_data_url(image)}">'


def _truth(sample: LabelSample) -> str:
    right = f"<h4>right</h4>{_text(', '.join(sample.truth))}" if sample.truth else ""
    return right + (f"<p>{_text(sample.note)}</p>" if sample.note else "")


def _nearest(title: str, captions: Sequence[tuple[str, float]], *own: str) -> str:
    rows = [
        f"<li{' class=own' if caption in own else ''}><span>{score:.3f}</span> {_text(caption)}</li>"
        for caption, score in captions
    ]
    return f"<div><h4>{title}</h4><ol>{''.join(rows)}</ol></div>" if rows else ""


def _text(value: object) -> str:
    """Foreign text as HTML, cut where nobody reads on."""
    text = str(value)
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " ...")


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _bad_samples(bad: Records) -> str:
    rows = [[_text(each.get(key, "")) for key in ("step", "image", "reason")] for each in bad[:SHOWN]]
    more = f"<p>{len(bad):,} in all; bad_samples.jsonl lists them.</p>" if len(bad) > SHOWN else ""
    return _table(rows) + more if rows else ""


def _settings(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return f"<details><summary>{path.name}</summary><pre>{escape(text)}</pre></details>"
