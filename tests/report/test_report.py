"""`report.html`: complete, self-contained, safe against what captions hold, and there even when files are damaged."""

from __future__ import annotations

import json
import math
import re
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tcl.data.images.decode import decode
from tcl.data.labels.regions import read_regions
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.models.tcl import TCL
from tcl.report.charts import Line, chart, format_figure, thin
from tcl.report.curves import PUBLISHED
from tcl.report.page import LabelSample, ReportSample, write_report
from tcl.report.records import read_records
from tcl.report.samples import collect_samples, region_samples

RECORDED = Path(__file__).parents[1] / "recorded" / "demo_metrics.jsonl"
POLICY = {
    "http-equiv": "Content-Security-Policy",
    "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
}
VOID = {"meta", "img", "br", "path", "circle"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order. Keeps tags with attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def charts(self) -> list[str]:
        return [str(attributes["aria-label"]) for tag, attributes in self.tags if tag == "svg"]


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def report(run: Path, *arguments: Any, **options: Any) -> Page:
    return Page(write_report(run, *arguments, **options).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(RECORDED.read_bytes())
    (folder / "config.yaml").write_text("optim: {lr: 0.001}\n")
    write_records(folder / "warnings.jsonl", [{"step": 500, "message": "42% of the time is spent waiting"}])
    write_records(folder / "bad_samples.jsonl", [{"step": 3, "image": "a.jpg", "reason": "cut off"}] * 12)
    return folder


def jpeg() -> bytes:
    file = BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_everything_of_a_run_is_there(run: Path) -> None:
    page = report(run, [ReportSample(jpeg(), "a star", [("a circle", 0.5), ("a star", 0.25)], [("a star", 0.75)])])
    for term in ("loss", "contrastive", "cma_i2t", "imc_text", "lmi_image", "itm", "mlm"):
        assert f"{term} over the steps" in page.charts
    for title in ("Text to image", "Image to text", "Mean recall", "Learning rate", "Gradient norm", "Temperature"):
        assert f"{title} over the steps" in page.charts
    assert "Samples per second over the steps" in page.charts and "Spread of the features over the steps" in page.charts
    for words in (
        "my run",
        "42% of the time",
        "optim: {lr: 0.001}",
        "cut off",
        "12 in all",
        "python",
        "torch",
        "by matching",
    ):
        assert words in page.text
    assert any(str(attributes.get("src", "")).startswith("data:image/jpeg;base64,") for _, attributes in page.tags)


def test_nothing_comes_from_outside(run: Path) -> None:
    page = report(run)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "href"
            assert name != "src" or str(value).startswith("data:")
    text = (run / "report.html").read_text()
    assert ("meta", POLICY) in page.tags
    text = text.replace("http-equiv", "")
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_hostile_text_stays_text(run: Path) -> None:
    evil = '</p><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\x00'
    write_records(run / "warnings.jsonl", [{"step": evil, "message": evil}])
    write_records(run / "bad_samples.jsonl", [{"step": 1, "image": evil + "\ud800", "reason": evil}])
    (run / "config.yaml").write_text(f"data: '{evil}'\n")
    records = [{"step": step, "loss": 1.0, evil: 2.0, f"val_{evil}": 1} for step in (1, 2)]
    write_records(run / "metrics.jsonl", [*records, {"step": 2, f"val_{evil}_r1": 3, f"val_{evil}": 1}])
    page = report(run, [ReportSample(b"no image " + evil.encode(), evil, [(evil, 1.0)], [(evil, 1.0)])])
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") >= 7


def test_a_caption_without_end_is_cut(tmp_path: Path) -> None:
    write_report(tmp_path, [ReportSample(jpeg(), "x" * 10_000_000, [("x" * 10_000_000, 1.0)])])
    assert (tmp_path / "report.html").stat().st_size < 20_000


DAMAGED = [
    "",
    "\n\n",
    "\xff\x00\n",
    '{"step": 1, "loss"',
    "[1, 2]\nnull\n3\n",
    '{"loss": 1}\n',
    '{"step": 5, "loss": null}\n',
    '{"step": 1, "loss": 1' + "0" * 400 + "}\n",
    '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n',
    '{"step": 1, "loss": 3, "epoch": 0}\n',
    '{"step": 1, "val_r_mean": "x"}\n',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_or_empty_metrics(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    assert "not finished" in report(tmp_path).text


def test_a_run_without_files(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "none as yet" in page.text and page.charts == []


def test_a_line_cut_short_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_records(path) == [{"step": 1, "loss": 2.5}]


def test_the_published_log_is_beside_the_same_losses(tmp_path: Path) -> None:
    names = ("loss", "contrastive", "itm", "mlm", "cma_i2t")
    records = [{"step": step, "epoch": step / 100} | dict.fromkeys(names, 1 + 1 / step) for step in range(10, 401, 10)]
    write_records(tmp_path / "metrics.jsonl", records)
    page = report(tmp_path)
    dashed = [attributes for _, attributes in page.tags if attributes.get("class") == "line ref"]
    dots = [attributes for _, attributes in page.tags if attributes.get("class") == "dot ref"]
    assert len(dashed) == len(PUBLISHED) and len(dots) == 4 * len(PUBLISHED)  # the four epochs that were trained
    assert "published pre-training" in page.text
    assert "published pre-training" not in report(tmp_path, published=False).text
    write_records(tmp_path / "metrics.jsonl", records[:9])
    assert "published pre-training" not in report(tmp_path).text


def test_losses_of_other_tasks_are_drawn_by_their_names(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 2.0, "answer": 1.0, "lr": 0.1} for step in range(1, 5)]
    write_records(tmp_path / "metrics.jsonl", [*records, {"step": 4, "val_accuracy": 50.0}])
    assert report(tmp_path).charts == [
        f"{name} over the steps" for name in ("loss", "answer", "accuracy", "Learning rate")
    ]


def test_a_long_run_is_fast_and_small(tmp_path: Path) -> None:
    keys = [f"term{number}" for number in range(12)]
    records = [
        {"step": s, "epoch": s / 900, "loss": 1 / s, **dict.fromkeys(keys, math.sin(s))} for s in range(1, 10_001)
    ]
    write_records(tmp_path / "metrics.jsonl", records)
    began = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - began < 2  # 0.4 s on an idle machine
    assert path.stat().st_size < 500_000


def test_thinning_keeps_the_range() -> None:
    points = [(float(step), 100.0 if step == 777 else 1.0) for step in range(10_000)]
    buckets = thin(points)
    assert len(buckets) <= 240 and max(bucket.high for bucket in buckets) == 100 and buckets[0].low == 1
    assert [bucket.mean for bucket in thin(points[:5])] == [1.0] * 5
    assert thin([]) == []


def test_curves_stay_inside_the_picture() -> None:
    for values in ([1.0], [0.0, 0.0], [5, 5, 5], [1e-9, 1e9, 1], [-3, 2, 1], [1e300, -1e300], [1e-5, 2e-5]):
        drawing = chart("x", [Line("a", list(enumerate(values, 1)))])
        numbers = re.findall(r'c[xy]="([^"]+)"', drawing)
        assert numbers and all(0 <= float(number) <= 360 for number in numbers), values
    assert chart("x", [Line("a", [])]) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.41234, "0.4123"), (12345.6, "12,346"), (1e-5, "1.0e-5"), (3.0, "3"), (2.5e7, "2.5e7")]
)
def test_figures_read_well(value: float, text: str) -> None:
    assert format_figure(value) == text


def test_samples_of_a_model(tiny_model: TCL, tmp_path: Path) -> None:
    index = read_pairs(["scenes:val:10"])
    samples = collect_samples(tiny_model, index, count=4)
    assert len(samples) == 4 and len({sample.caption for sample in samples}) == 4
    for sample in samples:
        for nearest in (sample.by_vectors, sample.by_matching):
            scores = [score for _, score in nearest]
            assert len(nearest) == 3 and scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for _, score in sample.by_matching)
        assert Image.open(BytesIO(sample.thumbnail)).format == "JPEG"
    best = max(tiny_model_cosines(tiny_model, index, samples[0].caption))
    assert samples[0].by_vectors[0][1] == pytest.approx(best, abs=1e-5)
    assert report(tmp_path, samples).text.count("by vectors") == 4


def test_samples_with_labels(tmp_path: Path) -> None:
    evil = "<b>two</b>"
    sample = LabelSample([jpeg(), jpeg()], evil, ["yes", "no"], [("no", 0.75), (evil, 0.25)], "a note")
    page = report(tmp_path, [sample])
    assert "Validation samples" in page.text and "Pairs and their nearest captions" not in page.text
    assert page.text.count(evil) == 2 and "yes, no" in page.text and "a note" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert [attributes for tag, attributes in page.tags if attributes.get("class") == "own"]


def test_regions_are_framed(tiny_model: TCL) -> None:
    regions = list(read_regions(["scenes:val:6"]))
    samples = region_samples(tiny_model, regions)
    assert 0 < len(samples) <= 8 and all("IoU" in sample.note for sample in samples)
    meant = regions[0]
    framed, plain = Image.open(BytesIO(samples[0].thumbnails[0])), decode(meant.image)
    plain.thumbnail(framed.size)
    changed = np.abs(np.asarray(framed, int) - np.asarray(plain, int)).max(axis=2) > 60
    assert 0 < changed.mean() < 0.2  # thin lines
    assert region_samples(tiny_model, [meant._replace(image="gone.png")]) == []


def tiny_model_cosines(model: TCL, index: PairIndex, caption: str) -> list[float]:
    pair = next(pair for pair in index if pair.captions[0] == caption)
    image = model.encode_image(model.processor.images([pair.image])).image_feat
    texts = model.encode_text(*model.processor.texts([pair.captions[0] for pair in index])).text_feat
    return (image @ texts.T)[0].tolist()


def test_unreadable_images_are_left_out(tiny_model: TCL, tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg())
    (tmp_path / "bad.jpg").write_bytes(jpeg()[:50])
    names = ["bad.jpg", "good.jpg", "missing.jpg"]
    columns = [[str(tmp_path / name) for name in names], [["one"], ["two"], ["three"]], names]
    index = PairIndex(pa.table(dict(zip(("image", "captions", "image_id"), columns, strict=True))), "")
    assert [sample.caption for sample in collect_samples(tiny_model, index)] == ["two"]
    tiny_model.train()
    collect_samples(tiny_model, index)
    assert tiny_model.training
    tiny_model.eval()
