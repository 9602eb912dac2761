"""Captions as COCO, Karpathy and Flickr30k write them, and what is wrong with bad files of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcl.data.pairs.table import read_pairs
from tcl.errors import DataError

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "COCO_val2014_9.jpg"}, {"id": 7, "file_name": "COCO_val2014_7.jpg"}],
    "licenses": [],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A bear. "},
        {"image_id": 9, "id": 2, "caption": "A desk."},
        {"image_id": 7, "id": 3, "caption": "Brown bear."},
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "val2014",
            "sentids": [1, 2],
            "filename": "COCO_val2014_7.jpg",
            "imgid": 0,
            "split": "test",
            "sentences": [{"tokens": ["a", "bear"], "raw": "A bear.", "sentid": 1}, {"raw": "Brown bear."}],
            "cocoid": 7,
        },
        {"filename": "30k.jpg", "imgid": 5, "split": "restval", "sentences": [{"raw": "A desk."}]},
    ],
    "dataset": "coco",
}


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("order", [["images", "annotations"], ["annotations", "images"]])
def test_coco_gives_a_row_per_caption(order: list[str], tmp_path: Path) -> None:
    source = write(tmp_path / "captions_val2014.json", {key: COCO[key] for key in ("info", *order)})
    index = read_pairs([source], images=str(tmp_path))
    assert [(pair.image, pair.captions, pair.image_id) for pair in index] == [
        (str(tmp_path / "COCO_val2014_7.jpg"), ["A bear. "], "7"),
        (str(tmp_path / "COCO_val2014_9.jpg"), ["A desk."], "9"),
        (str(tmp_path / "COCO_val2014_7.jpg"), ["Brown bear."], "7"),
    ]


def test_karpathy_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "dataset_coco.json", KARPATHY)
    first, second = read_pairs([source])
    assert first == (str(tmp_path / "val2014/COCO_val2014_7.jpg"), ["A bear.", "Brown bear."], "7")
    assert second == (str(tmp_path / "30k.jpg"), ["A desk."], "5")
    assert [pair.image_id for pair in read_pairs([f"{source}#split=test"])] == ["7"]
    with pytest.raises(DataError, match="no row has split=dev") as caught:
        read_pairs([f"{source}#split=dev"])
    assert caught.value.hint == "its values: restval, test"


def test_flickr30k_tokens(tmp_path: Path) -> None:
    lines = ["1000.jpg#0\tTwo young guys .", "1000.jpg#1\tTwo men outside .", "", "2#b.jpg#0\tA\tman .\r"]
    first, second = read_pairs([write(tmp_path / "results_20130124.token", "\n".join(lines))])
    assert first == (str(tmp_path / "1000.jpg"), ["Two young guys .", "Two men outside ."], "1000.jpg")
    assert second == (str(tmp_path / "2#b.jpg"), ["A\tman ."], "2#b.jpg")


@pytest.mark.parametrize("line", ["1000.jpg Two guys", "1000.jpg\tTwo guys", "1000.jpg#x\tTwo guys", "image,caption"])
def test_lines_that_are_no_tokens(line: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: no caption of Flickr30k"):
        read_pairs([write(tmp_path / "a.token", f"1.jpg#0\tA dog\n{line}\n")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "found dict without captions"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}]}', "found dict without captions"),
        ('{"images": [{"id": 1', "malformed JSON"),
        ('{"image": "1.jpg"}\n{"image": "2.jpg"}', "line 2: malformed JSON: Extra data"),
        ('{"annotations": []}', "found dict without captions"),
        ({**COCO, "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}]}, "none of its 1 rows has an image and a"),
    ],
)
def test_objects_that_hold_nothing(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs([write(tmp_path / "a.json", content)])


def test_rows_without_their_other_half_are_left_out(tmp_path: Path) -> None:
    odd = [3, {"caption": "no id"}, {"image_id": [1], "caption": "odd id"}, {"image_id": 5, "caption": "unknown id"}]
    index = read_pairs([write(tmp_path / "a.json", {**COCO, "annotations": [*COCO["annotations"], *odd]})])  # type: ignore[misc]
    assert (len(index), index.skipped) == (3, 4)
    assert index.skipped_reasons[1].endswith("a.json annotation 5: no image; it has caption")
    images = [{"sentences": "A"}, {"sentences": [None], "filename": "a.jpg"}, {"sentences": [{"raw": "B"}]}]
    index = read_pairs([write(tmp_path / "b.json", {"images": [*KARPATHY["images"], *images]})])
    assert (len(index), index.skipped) == (2, 3)
    reasons = [reason.rpartition(": ")[2].partition(";")[0] for reason in index.skipped_reasons]
    assert reasons == ["no image", "no caption", "no image"]
