"""Grounding: the published boxes and accuracy, heat maps of phrases, rows of own files, and every wrong box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tcl.data.boxes import Peak, best_box, contains, inside_share, iou, peak, region_box, usable
from tcl.data.labels.regions import Region, find_phrase, read_regions
from tcl.data.sources.find import find_source
from tcl.errors import DataError, UsageError
from tcl.evaluation.grounding import evaluate_grounding, region_maps
from tcl.explain.gradcam import cross_attention_maps, resample, word_spans
from tcl.models.tcl import TCL


def test_published_overlaps(golden: Any) -> None:
    pairs = golden("grounding")[1]["iou"]
    assert len(pairs) == 36
    for a, b, expected in pairs:
        assert iou(a, b) == pytest.approx(expected, abs=1e-12), (a, b)


def test_published_accuracy(golden: Any) -> None:
    tensors, values = golden("grounding")
    recorded = values["metric"]
    hits: dict[str, list[bool]] = {}
    for row, split in recorded["split"].items():
        size = recorded["images"][row]["height"], recorded["images"][row]["width"]
        heat = resample(tensors["metric/maps"][int(row)][None], size)[0].numpy()
        chosen = recorded["dets"][row][best_box(heat, recorded["dets"][row])]
        hits.setdefault(split, []).append(iou(recorded["gt"][row], chosen) >= 0.5)
    assert {f"{split}_d": np.mean(found) for split, found in hits.items()} == pytest.approx(recorded["result"])


def test_peak_and_region_by_hand() -> None:
    heat = np.zeros((4, 8))
    heat[1, 2:5] = (0.6, 1.0, 0.5)
    heat[2, 3] = 0.55
    heat[3, 7] = 0.9  # as hot, but elsewhere
    assert peak(heat, (40, 80)) == Peak(35, 15)
    assert region_box(heat, (40, 80)) == (20, 10, 30, 20)
    assert region_box(heat, (40, 80), threshold=0.58) == (20, 10, 20, 10)
    assert region_box(np.ones((2, 2)), (10, 10)) == (0, 0, 10, 10)
    assert contains((30, 10, 10, 10), Peak(35, 15)) and not contains((36, 10, 10, 10), Peak(35, 15))


@pytest.mark.parametrize(
    "box", [[1, 2, 3], "1 2 3 4", [0, 0, 0, 5], [0, 0, 5, -1], [0, 0, 5, float("nan")], [0, 0, 1, True]]
)
def test_what_is_no_box(box: object) -> None:
    assert not usable(box)


def test_share_inside() -> None:
    assert inside_share((-5, 0, 10, 10), (20, 20)) == 0.5
    assert inside_share((30, 0, 10, 10), (20, 20)) == 0 and inside_share((1, 1, 2, 2), (20, 20)) == 1


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("A dog, and a cat.", "a cat", (3, 2)),
        ("a dog and a dog", "dog", (1, 1)),
        ("a dog", "a dog", (0, 2)),
        ("a doghouse", "dog", None),
        ("a dog", "!", None),
        ("dog", "a big dog", None),
    ],
)
def test_phrases_in_texts(text: str, phrase: str, expected: tuple[int, int] | None) -> None:
    assert find_phrase(text, phrase) == expected


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b.png", (30, 20))):
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    return name


GOOD = {"image": "a.png", "text": "a dog", "box": [10, 5, 20, 20]}


def test_six_lines_of_ones_own(data: Path, tiny_model: TCL) -> None:
    proposals = [[0, 0, 20, 20], [10, 5, 20, 20], [30, 10, 30, 30]]
    rows = [
        GOOD | {"text": text, "proposals": proposals, "split": split}
        for text, split in (("a dog", "val"), ("two cats on the grass", "val"), ("a house", "test"))
    ]
    rows += [
        {"image": "b.png", "text": text, "box": [0, 0, 10, 15], "proposals": proposals[:1], "split": "test"}
        for text in ("sand", "a small house", "a dog runs")
    ]
    seen: list[int] = []
    result = evaluate_grounding(tiny_model, list(read_regions([write(rows)])), batch_size=4, progress=seen.append)
    assert [(figures.split, figures.rows) for figures in result.splits] == [("all", 6), ("val", 2), ("test", 4)]
    assert sum(seen) == 6 and result.layer == 2 and not result.bad
    for row, prediction in zip(rows, result.predictions, strict=True):
        assert prediction["predicted"] in row["proposals"] and prediction["text"] == row["text"]
        assert prediction["iou"] == iou(row["box"], prediction["predicted"])
        assert prediction["peak_inside"] == contains(row["box"], Peak(*prediction["peak"]))
    hits = [row["iou"] >= 0.5 for row in result.predictions]
    assert result.splits[0].proposals == pytest.approx(100 * np.mean(hits))
    assert result.splits[2].peak == pytest.approx(100 * np.mean([r["peak_inside"] for r in result.predictions[2:]]))


def test_batches_and_neighbours_change_nothing(data: Path, tiny_model: TCL) -> None:
    rows = [
        GOOD,
        GOOD | {"text": "two cats on the grass near the house"},
        GOOD | {"image": "b.png", "box": [0, 0, 9, 9]},
    ]
    regions = list(read_regions([write(rows)]))
    together = evaluate_grounding(tiny_model, regions).predictions
    for region, row in zip(regions, together, strict=True):
        (alone,) = evaluate_grounding(tiny_model, [region]).predictions
        assert alone["peak"] == row["peak"] and alone["predicted"] == row["predicted"]
        assert alone["match"] == pytest.approx(row["match"], abs=1e-5)


def test_the_map_of_a_phrase_is_that_of_its_words(data: Path, tiny_model: TCL) -> None:
    region = Region("here", "a.png", "a dog near the house", (3, 2), (0, 0, 9, 9), [], "")
    pixels = tiny_model.processor.images(["a.png"])
    with torch.no_grad():
        text = tiny_model.encode_text(*tiny_model.processor.texts([region.text]))
        image = tiny_model.encode_image(pixels)
    found = cross_attention_maps(tiny_model, image, text, 2)
    spans, _ = word_spans(tiny_model, region.text, text.text_embeds.shape[1])
    assert [word for word, _ in spans[3:5]] == ["the", "house"]
    positions = [position for _, span in spans[3:5] for position in span]
    maps, probability = region_maps(tiny_model, pixels, [region], 2)
    torch.testing.assert_close(maps[0], found.token_maps[0, positions].mean(dim=0))
    torch.testing.assert_close(probability, found.logits.softmax(dim=-1)[:, 1])
    whole, _ = region_maps(tiny_model, pixels, [region._replace(phrase=None)], 2)
    torch.testing.assert_close(whole, found.caption_maps())
    assert not torch.allclose(whole, maps)


def test_scenes_name_every_shape_and_where_it_is(tiny_model: TCL) -> None:
    regions = list(read_regions(["scenes:val:4"]))
    assert len(regions) >= 4 and all(region.phrase for region in regions)
    for region in regions:
        words = region.text.replace(",", "").split()
        start, count = region.phrase or (0, 0)
        assert region.place.endswith(" ".join(words[start : start + count]))
        assert inside_share(region.box, (96, 96)) == pytest.approx(1)
    result = evaluate_grounding(tiny_model, regions)
    assert result.splits[0].rows == len(regions) and result.splits[0].proposals is None
    assert len(result.splits) == 1


def test_a_table_and_a_file_of_proposals(data: Path) -> None:
    Path("rows.csv").write_text('image,sentence,box,image_id\na.png,a dog,"10, 5, 20, 20",7\nb.png,a cat,1 2 3 4,8\n')
    Path("dets.json").write_text('{"7": [[0, 0, 5, 5]], "8": []}')
    first, second = read_regions(["rows.csv"], proposals="dets.json")
    assert first.box == (10, 5, 20, 20) and second.box == (1, 2, 3, 4)
    assert first.proposals == [(0, 0, 5, 5)] and second.proposals == []
    assert first.image == str(data / "a.png") and first.place.endswith("rows.csv line 2")
    (one,) = read_regions([write([GOOD | {"split": "val"}, GOOD | {"split": "test"}]) + "#split=test"])
    assert one.split == "test"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image": None}, "row.*no image|no image"),
        ({"text": " "}, "no text"),
        ({"text": "!?"}, "no words in the text"),
        ({"box": None}, "no box"),
        ({"box": [1, 2, 3]}, "is no box"),
        ({"box": [1, 2, 0, 3]}, "is no box"),
        ({"box": "left"}, "is no box"),
        ({"box": {"x": 1}}, "is no box"),
        ({"proposals": [[1, 2, 3, 4], [1, 2]]}, r"proposal 2: \[1, 2\] is no box"),
        ({"proposals": {"a": 1}}, "proposals are a list of boxes"),
        ({"phrase": "a cat"}, "the phrase 'a cat' does not occur"),
    ],
)
def test_rows_that_cannot_be_used(data: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        list(read_regions([write([GOOD, GOOD | change])]))
    assert "rows.jsonl line 2" in caught.value.message


@pytest.mark.parametrize(
    ("content", "error", "expected"),
    [
        (None, UsageError, "no such file of proposals"),
        ("{", DataError, "malformed JSON"),
        ("[]", DataError, "no JSON object"),
        ('{"1": 5}', DataError, "no JSON object"),
        ('{"1": [[1, 2]]}', DataError, "image_id 1: proposal 1"),
        ('{"2": []}', DataError, "no proposals for image_id '1'"),
    ],
)
def test_wrong_files_of_proposals(data: Path, content: str | None, error: type[Exception], expected: str) -> None:
    if content is not None:
        Path("dets.json").write_text(content)
    with pytest.raises(error, match=expected):
        list(read_regions([write([GOOD | {"image_id": 1}])], proposals="dets.json"))


def test_an_empty_file(data: Path, tiny_model: TCL) -> None:
    Path("rows.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        list(read_regions(["rows.jsonl"]))
    with pytest.raises(DataError, match="no regions"):
        evaluate_grounding(tiny_model, [])
    assert find_source("rows.jsonl").files


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([70, 5, 20, 20], "lies outside the image of 60 x 40 pixels"),
        ([10, 5, 200, 20], "lies outside the image"),
        ([-30, 0, 40, 10], "lies outside the image"),
        ([0.1, 0.2, 0.5, 0.4], "smaller than a pixel"),
    ],
)
def test_boxes_that_cannot_be_meant(data: Path, tiny_model: TCL, box: list[float], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        evaluate_grounding(tiny_model, list(read_regions([write([GOOD, GOOD | {"box": box}])])))
    assert "rows.jsonl line 2" in caught.value.message


def test_a_box_slightly_beyond_the_edge_is_fine(data: Path, tiny_model: TCL) -> None:
    rows = [GOOD | {"box": [40.5, 20.2, 20.1, 20.3], "proposals": [[-3, -2, 20, 20], [50, 30, 90, 90]]}]
    assert evaluate_grounding(tiny_model, list(read_regions([write(rows)]))).splits[0].rows == 1


def test_images_that_cannot_be_read(data: Path, tiny_model: TCL) -> None:
    regions = list(read_regions([write([GOOD | {"image": "none.png"}, GOOD])]))
    result = evaluate_grounding(tiny_model, regions)
    assert result.splits[0].rows == 1 and result.bad[0]["row"].endswith("rows.jsonl line 1")
    with pytest.raises(DataError, match=r"no image can be read; the first: .*none.png"):
        evaluate_grounding(tiny_model, regions[:1])


def test_a_layer_that_sees_no_image(data: Path, tiny_model: TCL) -> None:
    with pytest.raises(UsageError, match="layer 0 does not attend"):
        evaluate_grounding(tiny_model, list(read_regions([write([GOOD])])), layer=0)
