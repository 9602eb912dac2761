"""`tcl explain`: the figure, the JSON, and every wrong input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl.explain.figure import Panel, colour, draw_figure, overlay, shorten, wrap


@pytest.fixture
def photo(workplace: Path) -> str:
    """A picture of two colours, 60 x 40, in the working folder."""
    picture = Image.new("RGB", (60, 40), (200, 40, 40))
    picture.paste((30, 60, 220), (30, 0, 60, 40))
    picture.save(workplace / "photo.png")
    return "photo.png"


def test_figure_and_json(photo: str, tcl: Any) -> None:
    result = tcl("explain", photo, "A dog, on the grass!", "--out", "why.png", "--json")
    assert result.code == 0, result.stderr
    values = json.loads(result.stdout)
    assert [word["word"] for word in values["words"]] == ["a", "dog", "on", "the", "grass"]
    assert values["size"] == [60, 40] and values["layer"] == 2 and 0 <= values["match"] <= 1
    for place in (*values["words"], values["caption"]):
        x, y, width, height = place["box"]
        assert x >= 0 and y >= 0 and x + width <= 60.001 and y + height <= 40.001 and width > 0 and height > 0
        assert x <= place["peak"][0] <= x + width and y <= place["peak"][1] <= y + height
    with Image.open("why.png") as figure:
        assert figure.format == "PNG" and figure.width > 3 * 200
    assert not list(Path().glob(".*partial"))


def test_without_json_nothing_goes_to_stdout_and_the_figure_is_replaced(photo: str, tcl: Any) -> None:
    Path("why.png").write_bytes(b"old")
    result = tcl("explain", photo, "a dog", "--out", "why.png", "--model", "runs/tiny")
    assert result.code == 0 and result.stdout == "" and "why.png: 2 words" in result.stderr
    Image.open("why.png").verify()


def test_the_last_layer_says_that_words_have_no_maps(photo: str, tcl: Any) -> None:
    result = tcl("explain", photo, "a dog", "--out", "why.png", "--layer", "3", "--json")
    assert result.code == 0 and "layer 3 is the last" in result.stderr
    values = json.loads(result.stdout)
    assert [word["box"] for word in values["words"]] == [None, None] and values["caption"]["box"]


def test_a_caption_that_is_too_long_says_what_is_left_out(photo: str, tcl: Any) -> None:
    result = tcl("explain", photo, "zebra " * 30, "--out", "why.png", "--json")
    assert result.code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["words_left_out"] > 0 and len(values["words"]) + values["words_left_out"] == 30
    assert f"{values['words_left_out']} words at the end" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected", "hint"),
    [
        (["missing.jpg", "a dog"], 1, "cannot read image missing.jpg: no such file", ""),
        (["broken.png", "a dog"], 1, "cannot read image broken.png", ""),
        (["images", "a dog"], 1, "this is a folder", ""),
        (["photo.png", ""], 2, "holds no words", "describe the image"),
        (["photo.png", "?!"], 2, "holds no words", "describe the image"),
        (["photo.png", "a dog", "--layer", "1"], 2, "layer 1 does not attend", "fusion layers are 2 to 3"),
        (["photo.png", "a dog", "--layer", "7"], 2, "layer 7 does not attend", "fusion layers are 2 to 3"),
        (["photo.png", "a dog", "--out", "why.jpg"], 2, "the figure is a PNG", "why.png"),
        (["photo.png", "a dog", "--out", "folder.png"], 2, "is a folder", "explanation.png"),
        (["photo.png", "a dog", "--out", "no/where.png"], 2, "no folder no", ""),
        (["photo.png", "a dog", "--out", "./photo.png"], 2, "is the image itself", ""),
        (["photo.png", "a dog", "--model", "absent"], 2, "absent: no such model", ""),
    ],
)
def test_wrong_input(photo: str, tcl: Any, arguments: list[str], code: int, expected: str, hint: str) -> None:
    Path("broken.png").write_bytes(b"\x89PNG no more")
    Path("folder.png").mkdir()
    before = Path(photo).read_bytes()
    out = [] if "--out" in arguments else ["--out", "why.png"]
    result = tcl("explain", *arguments, *out)
    assert result.code == code, result.stderr
    assert expected in result.stderr and hint in result.stderr and "Traceback" not in result.stderr
    assert not Path("why.png").exists() and Path(photo).read_bytes() == before


def test_an_exported_bundle_has_no_fusion_encoder(photo: str, tcl: Any) -> None:
    Path("bundle").mkdir()
    Path("bundle/bundle.json").write_text("{}")
    result = tcl("explain", photo, "a dog", "--out", "why.png", "--model", "bundle")
    assert result.code == 2 and "exported bundle" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(photo: str, tcl: Any) -> None:
    Path("locked").mkdir(mode=0o500)
    result = tcl("explain", photo, "a dog", "--out", "locked/why.png")
    assert result.code == 1 and "locked" in result.stderr and "Traceback" not in result.stderr


def test_a_full_disk_leaves_the_figure_that_was_there(photo: str, tcl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("why.png").write_bytes(b"old")

    def full(self: Image.Image, path: Path, *_: object) -> None:
        path.write_bytes(b"cut")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    result = tcl("explain", photo, "a dog", "--out", "why.png")
    assert result.code == 1 and "No space left" in result.stderr
    assert Path("why.png").read_bytes() == b"old" and not list(Path().glob(".*partial"))


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (640, 480)])
@pytest.mark.parametrize("words", [1, 30])
def test_every_shape_and_number_of_words_gives_a_figure_that_fits_a_screen(size: tuple[int, int], words: int) -> None:
    heat = np.random.default_rng(0).random((8, 8))
    panels = [Panel(f"word{number}", heat, (0.0, 0.0, *map(float, size))) for number in range(words + 1)]
    figure = draw_figure(Image.new("RGB", size, "white"), "a caption " * words, "a note", panels)
    assert 300 <= figure.width <= 4000 and 150 <= figure.height <= 4000
    assert 0.3 <= figure.width / figure.height <= 6


def test_the_hottest_place_is_the_brightest_and_lies_where_the_map_says() -> None:
    heat = np.zeros((4, 4))
    heat[0, 3] = 1
    drawn = np.asarray(overlay(Image.new("RGB", (40, 40), (90, 90, 90)), heat, (80, 80)).convert("L"))
    row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
    assert row < 20 and column >= 60


def test_colours_grow_lighter_evenly() -> None:
    linear = (colour(np.linspace(0, 1, 65)) / 255.0) ** 2.2
    lightness = 116 * (linear @ [0.2126, 0.7152, 0.0722]) ** (1 / 3) - 16  # CIE L*
    steps = np.diff(lightness)
    assert (steps > 0).all() and steps.max() < 3.5 * steps.mean()


def test_text_is_wrapped_and_shortened_to_what_fits() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(16)
    assert all(font.getlength(line) <= 120 for line in wrap("some words that need lines " + "x" * 500, font, 120))
    lines = wrap("word " * 10_000, font, 120)
    assert 1 < len(lines) < 10 and lines[-1].endswith("...") and font.getlength(lines[-1]) <= 120
    assert shorten("short", font, 200) == "short" and shorten("w" * 100, font, 90).endswith("...")


def test_letters_of_any_script_are_drawn_without_failing(photo: str, tcl: Any) -> None:
    result = tcl("explain", photo, "café 红色 собака 😀 \u202eشجرة \ud83d", "--out", "why.png")
    assert result.code == 0, result.stderr
    Image.open("why.png").verify()
