"""Zero-shot classification: against the formula, by hand, and every wrong folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tcl.errors import DataError, UsageError
from tcl.evaluation.classification import (
    LabelledImages,
    Prediction,
    _result,
    class_name,
    class_vectors,
    evaluate_classification,
)
from tcl.models.tcl import TCL
from tests.conftest import make_tiny_model

CLASSES = ("small_dog", "white house", "grass", "10 cats", "2 houses", "sand", "empty")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven classes, the last without images, one image a folder further down."""
    draw = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / name / "more").mkdir(parents=True)
        for image in ("1.png", "more/2.png") if name != "empty" else ():
            Image.fromarray(draw.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(tmp_path / name / image)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no class")
    return tmp_path


def test_classes_are_the_folders_in_natural_order(folder: Path) -> None:
    data = LabelledImages.from_folder(folder)
    assert data.classes == ["2 houses", "10 cats", "empty", "grass", "sand", "small dog", "white house"]
    assert data.labels.tolist() == [0, 0, 1, 1, 3, 3, 4, 4, 5, 5, 6, 6]
    assert data.images[1] == str(folder / "2 houses/more/2.png")


@pytest.mark.parametrize(
    ("name", "natural"), [("golden_retriever", "golden retriever"), (" a__b ", "a b"), ("cafe\u0301", "caf\u00e9")]
)
def test_natural_names(name: str, natural: str) -> None:
    assert class_name(name) == natural


@pytest.mark.parametrize("at_once", [64, 4])
def test_templates_are_averaged_and_normalised_again(
    tiny_model: TCL, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcl.evaluation.classification.TEXTS", at_once)
    templates = ("a photo of a {}", "{}", "two {} on the grass")
    vectors = class_vectors(tiny_model, ["dog", "house"], templates)
    assert not vectors.requires_grad
    for row, name in enumerate(("dog", "house")):
        with torch.no_grad():
            each = [
                tiny_model.encode_text(*tiny_model.processor.texts([template.format(name)])).text_feat[0]
                for template in templates
            ]
        mean = torch.stack(each).mean(dim=0)
        torch.testing.assert_close(vectors[row], mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_the_same_as_image_by_image(tiny_model: TCL, folder: Path) -> None:
    told: list[Prediction] = []
    done: list[int] = []
    result = evaluate_classification(
        tiny_model, folder, ("a {}",), batch_size=5, predicted=told.append, progress=done.append
    )
    data = LabelledImages.from_folder(folder)
    vectors = class_vectors(tiny_model, data.classes, ("a {}",))
    top1, top5 = [], []
    with torch.no_grad():
        for image, label, prediction in zip(data.images, data.labels, told, strict=True):
            sims = tiny_model.encode_image(tiny_model.processor.images([image])).image_feat[0] @ vectors.T
            order = sims.argsort(descending=True).tolist()
            top1.append(order[0] == label)
            top5.append(label in order[:5])
            assert prediction.image == image and prediction.label == data.classes[label]
            assert [name for name, _ in prediction.top] == [data.classes[row] for row in order[:5]]
            shares = (sims / tiny_model.temp).softmax(0)
            assert [share for _, share in prediction.top] == pytest.approx(shares[order[:5]].tolist(), abs=1e-4)
    assert result.top1 == pytest.approx(100 * np.mean(top1)) and result.top5 == pytest.approx(100 * np.mean(top5))
    assert sum(done) == result.images == 12 and result.bad == []
    json.dumps([prediction.top for prediction in told])


def test_figures_by_hand() -> None:
    nearest = np.array([[0, 1], [2, 1], [1, 0], [1, 0], [1, 2], [1, 0]])
    labels = np.array([0, 0, 0, 0, 1, 1])
    result = _result(nearest, labels, ["a", "b", "c", "d"], [])
    assert result.top1 == pytest.approx(50) and result.top5 == pytest.approx(100 * 5 / 6)
    a, b, c, d = result.classes
    assert (a.images, a.top1, a.top5, a.confused_with) == (4, 25.0, 75.0, "b")
    assert (b.images, b.top1, b.confused_with) == (2, 100.0, None)
    assert (c.images, c.top1, c.top5, c.confused_with) == (0, None, None, None) and d.images == 0
    assert result.mean_per_class == pytest.approx((25 + 100) / 2)


def test_fewer_than_five_classes(tiny_model: TCL, folder: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    for name in ("grass", "sand"):
        (folder / name).rename(two / name)
    assert evaluate_classification(tiny_model, two).top5 == 100.0


def test_images_that_cannot_be_read_are_left_out(tiny_model: TCL, folder: Path) -> None:
    (folder / "sand/1.png").write_bytes(b"\x89PNG no more")
    result = evaluate_classification(tiny_model, folder, batch_size=3)
    assert result.images == 11 and [bad["image"] for bad in result.bad] == [str(folder / "sand/1.png")]
    for image in folder.rglob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(DataError, match="none of its 12 images can be read; the first"):
        evaluate_classification(tiny_model, folder)


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",), ("a photo of a {}", "")])
def test_templates_without_a_place_for_the_name(tiny_model: TCL, folder: Path, templates: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="template"):
        evaluate_classification(tiny_model, folder, templates)


def test_a_name_with_braces_is_only_a_name(tiny_model: TCL) -> None:
    assert class_vectors(tiny_model, ["{0}dog", "cat {x}"], ("a {}",)).shape == (2, 16)


def test_wrong_folders(tiny_model: TCL, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        evaluate_classification(tiny_model, tmp_path / "absent")
    with pytest.raises(UsageError, match="no such folder"):
        evaluate_classification(tiny_model, folder / "notes.txt")
    with pytest.raises(DataError, match="at least two folders, one per class; found 1"):
        evaluate_classification(tiny_model, folder / "sand")
    (folder / "small dog").mkdir()
    with pytest.raises(DataError, match="both mean 'small dog'"):
        evaluate_classification(tiny_model, folder)
    (folder / "small dog").rmdir()
    (folder / "!!").mkdir()
    with pytest.raises(DataError, match="holds no words"):
        evaluate_classification(tiny_model, folder)
    bare = tmp_path / "bare"
    for name in ("a", "b"):
        (bare / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no images in its 2 folders"):
        evaluate_classification(tiny_model, bare)


def test_weights_that_are_not_finite(folder: Path) -> None:
    model = make_tiny_model()
    torch.nn.init.constant_(model.vision_proj.weight, torch.nan)
    with pytest.raises(DataError, match="not numbers"):
        evaluate_classification(model, folder)
