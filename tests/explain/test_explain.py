"""Grad-CAM against what the published implementation computed; words, peaks and layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tcl.config.recipe import ModelConfig
from tcl.errors import UsageError
from tcl.explain.gradcam import (
    cross_attention_maps,
    default_layer,
    explain,
    fusion_layers,
    image_attention_maps,
    resample,
    word_spans,
)
from tcl.models.tcl import TCL, TextOutput
from tests.conftest import make_tiny_model
from tests.published import rename_reference


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() / (1 + expected.abs())).max() <= tolerance


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, of the largest entry: the values themselves are small."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    from safetensors.torch import load_file

    from tests.conftest import GOLDEN

    return load_file(GOLDEN / "grounding.safetensors")


@pytest.fixture(scope="module")
def model(recorded: dict[str, Tensor]) -> TCL:
    config = ModelConfig.model_validate(
        {
            "image_encoder": "vit_tiny_patch16_224",
            "image_encoder_args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 12},
            "image_size": 96,
            "text_encoder_args": {
                "hidden_size": 24,
                "num_hidden_layers": 4,
                "num_attention_heads": 12,
                "intermediate_size": 48,
                "max_position_embeddings": 40,
            },
            "pretrained": False,
            "fusion_layer": 2,
            "embed_dim": 16,
        }
    )
    state = {key.removeprefix("state/"): value for key, value in recorded.items() if key.startswith("state/")}
    model = TCL.from_config(config, 200).eval()
    missing, unexpected = model.load_state_dict(rename_reference(state), strict=False)
    assert not unexpected and all(key.startswith("text_encoder.cls.") for key in missing)
    return model


def pixels(recorded: dict[str, Tensor]) -> Tensor:
    return (recorded["in/image_u8"].float() - 128) / 64


def encode(model: TCL, recorded: dict[str, Tensor]) -> tuple[Any, TextOutput]:
    with torch.no_grad():
        text = model.encode_text(recorded["in/input_ids"], recorded["in/attention_mask"])
        return model.encode_image(pixels(recorded)), text


@pytest.mark.parametrize("layer", [2, 3])
def test_published_fusion_maps(model: TCL, recorded: dict[str, Tensor], layer: int) -> None:
    maps = cross_attention_maps(model, *encode(model, recorded), layer)
    close(maps.logits, recorded[f"itm_block{layer}/itm_logits"])
    assert relative(maps.caption_maps(), recorded[f"itm_block{layer}/gradcam"]) <= 2e-4
    if layer == 3:
        close(maps.attention[0], recorded["itm_block3/attention_image0"])
        assert relative(maps.gradient[0], recorded["itm_block3/gradient_image0"]) <= 2e-4


@pytest.mark.parametrize("row", [0, 1])
def test_published_token_maps(model: TCL, recorded: dict[str, Tensor], row: int) -> None:
    input_ids = recorded[f"notebook{row}/input_ids"]
    with torch.no_grad():
        image = model.encode_image(pixels(recorded)[row : row + 1])
        text = model.encode_text(input_ids, torch.ones_like(input_ids))
    maps = cross_attention_maps(model, image, text, layer=3)
    assert relative(maps.token_maps[0], recorded[f"notebook{row}/gradcam"]) <= 2e-4


def test_published_image_encoder_maps(model: TCL, recorded: dict[str, Tensor]) -> None:
    _, text = encode(model, recorded)
    maps = image_attention_maps(model, pixels(recorded), text, block=1)
    assert relative(maps, recorded["itc_block1/gradcam"]) <= 2e-4


def test_maps_need_no_parameter_gradient_and_leave_the_model_as_it_was(model: TCL, recorded: dict[str, Tensor]) -> None:
    image, text = encode(model, recorded)
    fused = [block.attn.fused_attn for block in model.visual_encoder.blocks]
    cross_attention_maps(model, image, text, 2)
    image_attention_maps(model, pixels(recorded), text, 0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [block.attn.fused_attn for block in model.visual_encoder.blocks] == fused
    assert not any(block.attn.attn_drop._forward_hooks for block in model.visual_encoder.blocks)


def make_wide_model() -> TCL:
    """Of a grid of 4 rows and 4 columns, with the last column cut off: 32 x 24 pixels."""
    model = make_tiny_model()
    encoder = model.visual_encoder
    encoder.set_input_size(img_size=(32, 24))
    model.processor = type(model.processor)(model.processor.tokenizer, (32, 24), model.processor.max_length)
    return model


def test_a_grid_that_is_not_square() -> None:
    model = make_wide_model()
    assert tuple(model.visual_encoder.grid_size) == (4, 3)
    text = model.encode_text(*model.processor.texts(["a dog runs", "two dogs"]))
    image = model.encode_image(torch.randint(256, (2, 3, 32, 24), dtype=torch.uint8))
    maps = cross_attention_maps(model, image, text, 2)
    assert maps.token_maps.shape == (*text.attention_mask.shape, 4, 3) and torch.isfinite(maps.token_maps).all()
    assert not text.attention_mask.all() and not maps.token_maps[~text.attention_mask].any()
    assert maps.token_maps[text.attention_mask].flatten(1).any(dim=1).all()
    assert resample(maps.caption_maps(), (64, 48)).shape == (2, 64, 48)


def test_the_gradient_is_the_effect_of_attending_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences: a little more attention from one word to one patch changes the match logit so."""
    model = make_tiny_model().double()
    text = model.encode_text(*model.processor.texts(["a dog runs on the grass"]))
    image = model.encode_image(torch.rand(1, 3, 32, 32, dtype=torch.double))
    found = cross_attention_maps(model, image, text, 2)
    place, step = (0, 1, 2, 5), 1e-4
    calls, change = 0, 0.0

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
        nonlocal calls
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        calls += 1
        if calls == 2:  # behind self-attention, the cross-attention of the first fusion layer
            weights[place] += change
        return weights @ value

    monkeypatch.setattr("tcl.models.attention.F.scaled_dot_product_attention", attend)
    logits = []
    for change in (step, -step):  # noqa: B007 - `attend` reads it
        calls = 0
        with torch.no_grad():
            fused = model.fuse(text.text_embeds, text.attention_mask, model.image_key_values(image.image_embeds))
            logits.append(float(model.itm_head(fused[:, 0])[0, 1]))
    assert float(found.gradient[place]) == pytest.approx((logits[0] - logits[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog, running!", ["a", "dog", "running"]),
        ("snow’s café \t x", ["snow’s", "café", "x"]),
        ("two 红色 dogs", ["two", "红", "色", "dogs"]),
        ("zqxj 😀", ["zqxj", "😀"]),
    ],
)
def test_words_own_the_tokens_of_their_pieces(tiny_model: TCL, caption: str, words: list[str]) -> None:
    input_ids, _ = tiny_model.processor.tokenizer([caption], None)
    spans, cut = word_spans(tiny_model, caption, input_ids.shape[1])
    assert [word for word, _ in spans] == words and cut == 0
    assert [position for _, positions in spans for position in positions] == list(range(1, input_ids.shape[1]))


def test_words_beyond_the_longest_text_are_counted(tiny_model: TCL) -> None:
    whole, _ = word_spans(tiny_model, "a dog runs on the grass", 99)
    spans, cut = word_spans(tiny_model, "a dog runs on the grass", whole[2][1][-1] + 1)
    assert [word for word, _ in spans] == ["a", "dog", "runs"] and cut == 3


def test_explanation_of_a_picture(tiny_model: TCL) -> None:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    found = explain(tiny_model, picture, "A dog runs.")
    assert found.words == ["a", "dog", "runs"] and found.layer == default_layer(tiny_model) == 2
    assert found.word_maps.shape == (3, 32, 32) and (found.word_maps >= 0).all() and found.word_maps.any()
    with torch.no_grad():
        image = tiny_model.encode_image(tiny_model.processor.images([picture]))
        text = tiny_model.encode_text(*tiny_model.processor.texts(["A dog runs."]))
        assert found.probability == pytest.approx(float(tiny_model.match(image, text).softmax(-1)[0, 1]), abs=1e-5)
    last = explain(tiny_model, picture, "A dog runs.", layer=3)
    assert last.caption_map.any() and not last.word_maps.any()  # behind the last layer only [CLS] is read


@pytest.mark.parametrize("layer", [-1, 0, 1, 4])
def test_layers_that_see_no_image(tiny_model: TCL, layer: int) -> None:
    with pytest.raises(UsageError, match=f"layer {layer} does not attend") as caught:
        explain(tiny_model, Image.new("RGB", (8, 8)), "a dog", layer)
    assert caught.value.hint == "fusion layers are 2 to 3"


def test_a_model_without_fusion_encoder() -> None:
    model = make_tiny_model()
    model.text_encoder.bert.fusion_layer = 4
    assert not fusion_layers(model)
    with pytest.raises(UsageError, match="no fusion encoder"):
        explain(model, Image.new("RGB", (8, 8)), "a dog")


def test_a_caption_without_words(tiny_model: TCL) -> None:
    with pytest.raises(UsageError, match="holds no words"):
        explain(tiny_model, Image.new("RGB", (8, 8)), "!?")


def test_blocks_of_the_image_encoder_that_do_not_exist(tiny_model: TCL) -> None:
    text = tiny_model.encode_text(*tiny_model.processor.texts(["a dog"]))
    with pytest.raises(UsageError, match="no block 2") as caught:
        image_attention_maps(tiny_model, torch.zeros(1, 3, 32, 32), text, 2)
    assert caught.value.hint == "blocks are 0 to 1"
