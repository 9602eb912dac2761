"""A folder with known faults gives exact figures, whatever the number of workers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl.data.check import captions as captions_module
from tcl.data.check import images as images_module
from tcl.data.check.captions import CaptionCheck, Unknown, check_captions
from tcl.data.check.figures import summary
from tcl.data.check.images import ImageCheck, check_images
from tcl.data.check.report import Limits, report
from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.data.tokenizer import CaptionTokenizer
from tests.conftest import CAPTIONS
from tests.data.files import jpeg

LONG = " ".join(["dog"] * 31)


@pytest.fixture
def faulty(tmp_path: Path) -> PairIndex:
    """Pairs with one fault of each kind."""
    whole = jpeg(300, 260)
    files = {
        "a.jpg": whole,
        "copy.jpg": whole,
        "turned.jpg": jpeg(400, 300, seed=1, orientation=6),
        "gray.jpg": jpeg(50, 200, seed=2, mode="L"),
        "cut.jpg": jpeg(2000, 1500, seed=3)[:-30_000],
        "page.jpg": b"<html>404</html>",
        "empty.jpg": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows: list[tuple[str, Any]] = [
        ("a.jpg", ["A dog.", "a dog"]),
        ("copy.jpg", "a dog"),
        ("turned.jpg", LONG),
        ("gray.jpg", "ж white ж7"),
        ("cut.jpg", "a house"),
        ("page.jpg", "a house"),
        ("empty.jpg", "a ring"),
        ("gone.jpg", "a square"),
        ("a.jpg", "a circle"),
        ("none.jpg", "..."),
    ]
    text = "".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in rows)
    (tmp_path / "pairs.jsonl").write_text(text)
    return read_pairs([str(tmp_path / "pairs.jsonl")])


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.train(CAPTIONS, 300)


def test_captions(faulty: PairIndex, tokenizer: CaptionTokenizer) -> None:
    listed: list[dict[str, Any]] = []
    found = check_captions(faulty, tokenizer, max_length=4, listing=lambda row: listed.append(dict(row)))
    assert (found.pairs, found.captions) == (9, 10)
    assert found.words == Counter({2: 8, 31: 1, 3: 1})
    assert found.repeated_images == 1 and found.first_rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.repeated_pairs == 1  # "A dog." and "a dog" of a.jpg are one text
    assert found.shared == 5  # three times "a dog", two images; "a house", two images
    values = found.to_json()
    assert values["cut_at_30_words"] == {"count": 1, "percent": 10.0}
    lengths = [len(tokenizer([text], None)[0][0]) for pair in faulty for text in pair.captions]
    assert found.tokens == Counter(lengths)
    assert values["tokens"]["cut_at_4"]["count"] == sum(length > 4 for length in lengths)
    assert [(row["row"], row["problem"], row["caption"]) for row in listed] == [
        (0, "repeated pair", "a dog"),
        (0, "shared caption", "A dog."),
        (0, "shared caption", "a dog"),
        (1, "shared caption", "a dog"),
        (4, "shared caption", "a house"),
        (5, "shared caption", "a house"),
    ]
    assert listed[3]["image"].endswith("copy.jpg")


def test_words_that_the_vocabulary_lacks(faulty: PairIndex, tokenizer: CaptionTokenizer) -> None:
    found = check_captions(faulty, tokenizer).unknown
    assert found is not None
    assert (found.tokens, found.captions) == (2, 1)
    ids = [tokenizer([text], None)[0][0] for pair in faulty for text in pair.captions]
    assert found.of_tokens == sum(len(row) - 1 for row in ids)
    assert found.words == Counter({"ж": 1, "ж7": 1})
    values = found.to_json(10)
    assert values["characters"] == {"ж": 2, "7": 1}
    assert values["scripts"] == {"Cyrillic": 2, "symbols": 1}
    assert values["captions"] == {"count": 1, "percent": 10.0}


def test_without_a_tokenizer_nothing_is_said_about_tokens(faulty: PairIndex) -> None:
    values = check_captions(faulty).to_json()
    assert values["tokens"] is None and values["unknown"] is None
    assert values["words"]["max"] == 31


def test_unknown_words_are_bounded_and_the_frequent_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "UNKNOWN_WORDS_KEPT", 10)
    total = Unknown()
    for n in range(50):
        total.add(Unknown(words=Counter({"often": 2, f"once{n}": 1})))
    assert len(total.words) <= 21 and total.words["often"] == 100


def test_images(faulty: PairIndex) -> None:
    listed: list[dict[str, Any]] = []
    rows = check_captions(faulty).first_rows
    done: list[tuple[int, int]] = []
    found = check_images(
        faulty,
        rows,
        listing=lambda row: listed.append(dict(row)),
        progress=lambda n, bad: done.append((n, bad)),
    )
    assert (found.distinct, found.checked, found.missing, found.unreadable, found.copies) == (8, 8, 1, 3, 1)
    assert found.widths == Counter({300: 3, 50: 1}) and found.heights == Counter({260: 2, 400: 1, 200: 1})
    assert (found.small, found.extreme) == (1, 1)
    assert (found.formats, found.modes) == (Counter(JPEG=4), Counter(RGB=3, L=1))
    folder = Path(faulty[0].image).parent
    assert found.bytes == sum(
        (folder / name).stat().st_size for name in ("a.jpg", "copy.jpg", "turned.jpg", "gray.jpg")
    )
    assert (sum(n for n, _ in done), done[-1][1]) == (8, 4)
    assert [(row["row"], Path(row["image"]).name, row["problem"]) for row in listed] == [
        (4, "cut.jpg", "unreadable"),
        (5, "page.jpg", "unreadable"),
        (6, "empty.jpg", "unreadable"),
        (7, "gone.jpg", "missing"),
        (1, "copy.jpg", "copy"),
    ]
    assert listed[4]["of"] == faulty[0].image
    assert found.examples == listed[:4]
    assert "truncated" in listed[0]["reason"] and any("(N bytes" in reason for reason in found.reasons)
    assert [row["reason"] for row in listed[2:4]] == ["the file is empty", "no such file"]


def test_figures_do_not_depend_on_the_workers(
    faulty: PairIndex, tokenizer: CaptionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions_module, "CHUNK_PAIRS", 2)
    monkeypatch.setattr(images_module, "CHUNK_IMAGES", 2)

    def check(workers: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        listed: list[dict[str, Any]] = []
        options: Any = {"workers": workers, "listing": lambda row: listed.append(dict(row))}
        captions = check_captions(faulty, tokenizer, **options)
        images = check_images(faulty, captions.first_rows, **options)
        return report(1, [], captions, images, Limits()), listed

    assert check(1) == check(2)


def test_a_sample_is_the_same_each_time() -> None:
    index = read_pairs(["scenes:val:40"])
    captions = check_captions(index)
    found = check_images(index, captions.first_rows, sample=7)
    assert (found.distinct, found.checked, found.readable) == (40, 7, 7)
    assert found == check_images(index, captions.first_rows, sample=7)
    assert check_images(index, captions.first_rows, sample=400).checked == 40


def test_a_damaged_jpeg_is_found_although_it_is_decoded_at_low_resolution(tmp_path: Path) -> None:
    whole = jpeg(1024, 768, progressive=True)
    for length in (600, len(whole) // 2, len(whole) - 2000, len(whole)):
        (tmp_path / f"{length}.jpg").write_bytes(whole[:length])
        (tmp_path / f"{length}.txt").write_text("a dog")
    index = read_pairs([str(tmp_path)])
    found = check_images(index, np.arange(len(index)))
    assert (found.unreadable, found.readable) == (3, 1)


@pytest.mark.parametrize(
    ("limits", "exceeded"),
    [
        (Limits(50, 10, 25, 20), []),  # exactly at each limit
        (Limits(49.9, 10, 25, 20), ["50 % of the images are missing or unreadable (--max-bad 49.9)"]),
        (Limits(50, 9.9, 25, 20), ["10 % of the rows were skipped (--max-skipped 9.9)"]),
        (Limits(50, 10, 24, 20), ["25 % of the images are copies of another (--max-duplicates 24)"]),
        (Limits(50, 10, 25, 0), ["20 % of the tokens are [UNK] (--max-unknown 0)"]),
        (Limits(0, 0, 25, 20), ["50 % of the images are missing or unreadable (--max-bad 0)", "10 % of the rows"]),
    ],
)
def test_limits(limits: Limits, exceeded: list[str]) -> None:
    captions = CaptionCheck(pairs=9, captions=9, unknown=Unknown(tokens=2, of_tokens=10))
    images = ImageCheck(distinct=8, checked=8, missing=1, unreadable=3, copies=1)
    values = report(1, ["line 3: no image"], captions, images, limits)
    assert values["ok"] is not bool(exceeded)
    assert len(values["exceeded"]) == len(exceeded)
    assert all(found.startswith(text) for found, text in zip(values["exceeded"], exceeded, strict=True))


def test_quantiles_are_exact() -> None:
    numbers = np.random.default_rng(0).integers(1, 60, 997)
    found = summary(Counter(numbers.tolist()))
    for name, quantile in {"min": 0, "p5": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1}.items():
        assert found[name] == np.quantile(numbers, quantile, method="inverted_cdf"), name
    assert found["mean"] == pytest.approx(numbers.mean(), abs=0.01)
    assert summary(Counter()) == {}
