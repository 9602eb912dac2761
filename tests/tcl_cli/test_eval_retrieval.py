"""`tcl eval retrieval`: depth, image size, and the protocols with their published rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tcl.errors import ConfigError, UsageError
from tcl.evaluation.published import RETRIEVAL, find_protocol
from tcl.weights.load import load_model
from tests.tcl_cli.fine_tuned import read_lines, save_fine_tuned, write_rows

FIGURES = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}


@pytest.mark.parametrize("protocol", RETRIEVAL, ids=lambda protocol: protocol.name)
def test_published_rows_are_whole(protocol: Any) -> None:
    assert find_protocol(protocol.name) is protocol and protocol.rows
    for row in protocol.rows:
        assert set(row.figures) == FIGURES and set(row.to_verify) <= FIGURES and row.source
        for way in ("i2t", "t2i"):
            assert row.figures[f"{way}_r1"] < row.figures[f"{way}_r5"] < row.figures[f"{way}_r10"] < 100


def test_zero_shot_on_flickr30k_means_the_model_tuned_on_coco() -> None:
    protocol = find_protocol("flickr-zero-shot")
    assert "fine-tuned on COCO" in protocol.checkpoint and protocol.candidates == 128
    first, second = protocol.rows[:2]
    assert (first.figures["i2t_r1"], first.figures["t2i_r1"]) == (93.0, 79.6)
    assert not {"i2t_r1", "t2i_r1"} & set(first.to_verify)
    assert second.what.startswith("pre-trained alone") and second.figures["i2t_r1"] == 89.4
    assert find_protocol("coco-zero-shot").candidates == 256
    with pytest.raises(UsageError, match="no protocol 'coco-5k'"):
        find_protocol("coco-5k")


def test_differences_from_a_protocol() -> None:
    protocol = find_protocol("flickr")
    assert protocol.differences(1000, 5000, 128, (384, 384)) == []
    assert len(protocol.differences(1000, 5001, 64, (384, 256))) == 3


def test_a_protocol_beside_what_was_measured(workplace: Path, tcl: Any) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:6", "--protocol", "flickr-zero-shot")
    assert result.code == 0, result.stderr
    header, vectors, reranked, published, alone, _ = (line.split("\t") for line in result.stdout.splitlines())
    assert header[:4] == ["", "TR R@1", "R@5", "R@10"] and vectors[0] == "vectors alone"
    assert reranked[0].startswith("best ") and len(reranked) == 7
    assert published == [
        "published: fine-tuned on COCO, re-ranked", "93", "99.1?", "99.6?", "79.6", "95.1?", "97.4?",
    ]  # fmt: skip
    assert alone[1] == "89.4"
    assert "the published figures are of the one fine-tuned on COCO retrieval, not the pre-trained one" in result.stderr
    assert "not as published: 6 images" in result.stderr and "32 x 32 pixels instead of 384" in result.stderr
    assert "? has not been compared with the paper" in result.stderr


def test_a_protocol_as_json(workplace: Path, tcl: Any) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:6", "--protocol", "coco-zero-shot", "--k", "3", "--json")
    values = json.loads(result.stdout)
    assert values["protocol"]["name"] == "coco-zero-shot" and "TCL_4M.pth" in values["protocol"]["checkpoint"]
    assert values["protocol"]["published"][0]["figures"]["i2t_r1"] == 71.4
    assert any("3 candidates re-ranked instead of 256" in text for text in values["protocol"]["not_as_published"])
    assert values["rerank"] == {"texts": 3, "images": 3} and values["reranked"]["i2t_r1"] >= 0


def test_depth_is_clipped_to_the_set(workplace: Path, tcl: Any) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:5", "--json")
    values = json.loads(result.stdout)
    assert values["rerank"] == {"texts": values["texts"], "images": 5} and values["images"] == 5
    whole = json.loads(tcl("eval", "retrieval", "--data", "scenes:val:5", "--k", "999", "--json").stdout)
    assert whole["reranked"] == values["reranked"]
    alone = tcl("eval", "retrieval", "--data", "scenes:val:5", "--rerank", "0")
    assert alone.stdout.splitlines()[1].startswith("vectors alone") and len(alone.stdout.splitlines()) == 2


def test_unknown_protocols_are_refused(workplace: Path, tcl: Any) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:5", "--protocol", "coco-1k")
    assert result.code == 2 and "flickr-zero-shot" in result.stderr


@pytest.mark.parametrize(("size", "shape"), [("48", [48, 48]), ("24x48", [24, 48])])
def test_another_image_size(workplace: Path, tcl: Any, size: str, shape: list[int]) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:5", "--image-size", size, "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["image_size"] == shape


@pytest.mark.parametrize("size", ["8", "big", "48x", "48x48x3", "4096", "-1"])
def test_sizes_that_are_none(workplace: Path, tcl: Any, size: str) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:5", f"--image-size={size}")
    assert result.code == 2 and f"--image-size {size}: no size in pixels" in result.stderr


def test_a_size_that_would_leave_pixels_over(workplace: Path, tcl: Any) -> None:
    result = tcl("eval", "retrieval", "--data", "scenes:val:5", "--image-size=24x100")
    assert result.code == 2 and result.stdout == ""
    assert (
        "width 100 is no multiple of the patch, 8 pixels: the last 4 would be ignored; use 96 or 104" in result.stderr
    )


def test_resized_models_keep_what_they_know(tiny_model_folder: Path) -> None:
    from tcl.weights.resize import resize_images

    model = load_model(tiny_model_folder)
    known, hash_before = model.visual_encoder.state_dict(), model.model_hash
    resize_images(model, model.processor.image_size)
    assert model.model_hash == hash_before
    resize_images(model, (48, 32))
    assert model.visual_encoder.grid_size == (6, 4) and model.processor.image_size == (48, 32)
    assert model.model_hash != hash_before and not model.training
    for name, tensor in model.visual_encoder.state_dict().items():
        assert name == "pos_embed" or torch.equal(tensor, known[name])
    with pytest.raises(ConfigError, match="6 x 4 patches cannot be resized"):
        resize_images(model, (64, 64))


def test_models_whose_weights_are_no_numbers(workplace: Path, tcl: Any, tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    with torch.no_grad():
        model.itm_head.bias[0] = float("nan")
    model.save_pretrained("broken")
    for task in (["retrieval", "--data", "scenes:val:4"], ["grounding", "--data", "scenes:val:2"]):
        result = tcl("eval", *task, "--model", "broken")
        assert result.code == 1 and "broken: its weights are not finite" in result.stderr


def test_fine_tuned_models_retrieve_too(workplace: Path, tcl: Any, tiny_model: Any) -> None:
    folder = save_fine_tuned(tiny_model, "nlvr2", ["False", "True"], "runs/nlvr2")
    result = tcl("eval", "retrieval", "--data", "scenes:val:4", "--model", folder, "--k", "2")
    assert result.code == 0, result.stderr


def test_unreadable_images_are_named(workplace: Path, tcl: Any) -> None:
    rows = [{"image": f"images/{name}.png", "caption": "a dog"} for name in (1, 2, 10, *range(20, 28))]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = tcl("eval", "retrieval", "--data", "pairs.jsonl", "--k", "2")
    assert (
        result.code == 0 and "8 images left out:" in result.stderr and "and 3 more; --json lists all" in result.stderr
    )
    values = json.loads(tcl("eval", "retrieval", "--data", "pairs.jsonl", "--k", "2", "--json").stdout)
    assert values["images"] == 3 and len(values["bad"]) == 8


def test_predictions_of_both_directions(workplace: Path, tcl: Any) -> None:
    command = ("eval", "retrieval", "--data", "scenes:val:5", "--k", "3", "--json", "--predictions", "nearest.jsonl")
    result = tcl(*command)
    assert result.code == 0 and "predictions in nearest.jsonl" in result.stderr
    values, lines = json.loads(result.stdout), read_lines("nearest.jsonl")
    assert values["predictions"] == "nearest.jsonl"
    assert sum(line["query"] == "image" for line in lines) == values["images"] == 5
    texts = [line for line in lines if line["query"] == "text"]
    assert len(texts) == values["texts"] and [line["text_id"] for line in texts] == list(range(len(texts)))
    for name in ("vectors", "reranked"):
        share = 100 * sum(line[name]["rank"] == 1 for line in texts) / len(texts)
        assert values[name]["t2i_r1"] == pytest.approx(share)
    assert len(texts[0]["vectors"]["top"]) == 5 and len(texts[0]["reranked"]["top"]) == 3
    assert set(texts[0]["reranked"]["top"][0]) == {"image", "score", "right"}
    tcl("eval", "retrieval", "--data", "scenes:val:5", "--k", "0", "--predictions", "nearest.jsonl")
    assert all("reranked" not in line and line["vectors"]["top"] for line in read_lines("nearest.jsonl"))


def test_predictions_that_cannot_be_written(workplace: Path, tcl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_rows("pairs.jsonl", [{"image": f"images/{name}.png", "caption": "a dog"} for name in (1, 2)])
    result = tcl("eval", "retrieval", "--data", source, "--predictions", source)
    assert result.code == 2 and "--predictions pairs.jsonl is the data itself" in result.stderr
    Path("nearest.jsonl").write_text("old")

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    result = tcl("eval", "retrieval", "--data", source, "--predictions", "nearest.jsonl")
    assert result.code == 1 and "No space left" in result.stderr and "vectors alone" in result.stdout
    assert Path("nearest.jsonl").read_text() == "old" and not list(Path().glob(".*partial"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pairs.jsonl holds no rows"),
        ([{"image": "images/1.png", "caption": "a dog"}], "at least two readable images, found 1"),
        ([{"image": "images/1.png", "caption": word} for word in "ab"], "at least two readable images, found 1"),
        ([{"image": f"{name}.png", "caption": "a"} for name in "ab"], "found 0; the first: "),
    ],
)
def test_sets_that_cannot_be_ranked(workplace: Path, tcl: Any, rows: list[dict[str, Any]], message: str) -> None:
    result = tcl("eval", "retrieval", "--data", write_rows("pairs.jsonl", rows), "--predictions", "nearest.jsonl")
    assert result.code == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert not Path("nearest.jsonl").exists()
