"""The encoders: any image size, BERT as transformers computes it, and shared keys and values that change nothing."""

from __future__ import annotations

import pytest
import torch
import transformers

from tcl import TCL
from tcl.errors import ConfigError
from tcl.models.attention import KeyValue
from tcl.models.bert import Bert, BertForMaskedLM
from tcl.models.tcl import ImageOutput, TextOutput
from tcl.models.vision import build_vision_encoder
from tests.conftest import TINY, make_tiny_model


@pytest.mark.parametrize("image_size", [32, 40, 64])
def test_any_image_size(image_size: int) -> None:
    model = make_tiny_model(image_size=image_size)
    side = image_size // 8
    assert model.visual_encoder.grid_size == (side, side)
    output = model.encode_image(torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8))
    assert output.image_embeds.shape == (2, 1 + side * side, 32)
    torch.testing.assert_close(output.image_feat.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (100, "model.image_size 100 is no multiple of the patch, 8 pixels: the last 4 would be ignored; use 96 or 104"),
        ((32, 33), "model.image_size: width 33 is no multiple of the patch, 8 pixels: the last 1 would be"),
    ],
)
def test_sizes_that_would_leave_pixels_over_are_refused(size: int | tuple[int, int], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_vision_encoder(TINY["image_encoder"], size, **TINY["image_encoder_args"])
    assert caught.value.message.startswith(expected)


def test_uint8_pixels_are_normalised_as_published(tiny_model: TCL) -> None:
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    by_hand = (pixels.float() / 255 - mean) / std
    torch.testing.assert_close(tiny_model.encode_image(pixels).image_feat, tiny_model.encode_image(by_hand).image_feat)


@pytest.mark.parametrize("name", ["vit_tiny", "resnet18", "vit_base_patch16_siglip_224"])
def test_what_is_no_vit_with_a_class_token_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model.image_encoder: "):
        build_vision_encoder(name, 32)


def test_bert_equals_transformers() -> None:
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=20, **sizes)
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).eval()
    bert = Bert(50, 32, 3, 4, 64, 20, fusion_layer=3, image_width=8, dropout=0.1, eps=1e-12)
    ours = BertForMaskedLM(bert).eval()
    state = theirs.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    input_ids = torch.randint(50, (4, 9))
    mask = torch.arange(9) < torch.tensor([[9], [5], [1], [7]])
    with torch.no_grad():
        expected = theirs(input_ids=input_ids, attention_mask=mask.long()).logits
        actual = ours.mlm_logits(ours.bert.encode(input_ids, mask))
    torch.testing.assert_close(actual[mask], expected[mask], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("width", [64, 192])
def test_initial_weights_have_the_gain_of_the_published_width(width: int) -> None:
    torch.manual_seed(0)
    bert = Bert(200, width, 2, 4, 2 * width, 20, fusion_layer=1, image_width=48, dropout=0.1, eps=1e-12)
    for name, parameter in BertForMaskedLM(bert).named_parameters():
        if "LayerNorm" in name or name.endswith("bias"):
            assert (parameter == float(name.endswith("LayerNorm.weight"))).all(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02 * (768 / width) ** 0.5, rel=0.1), name


@torch.no_grad()
def test_captions_of_one_image_share_its_keys_and_values() -> None:
    """R rows on B images equal R single pairs; images are wider than texts here."""
    model = make_tiny_model(image_encoder_args=TINY["image_encoder_args"] | {"embed_dim": 48})
    images = model.encode_image(torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8))
    texts = model.encode_text(
        *model.processor.texts([f"a {word} circle" for word in ["red", "blue", "green", "pink", "tiny", "top"]])
    )
    together = model.match(images, texts)
    for row in range(6):
        image = ImageOutput(*(tensor[row % 3 : row % 3 + 1] for tensor in images))
        text = TextOutput(*(tensor[row : row + 1] for tensor in texts))
        torch.testing.assert_close(model.match(image, text)[0], together[row], rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_padding_changes_nothing(tiny_model: TCL) -> None:
    input_ids, mask = tiny_model.processor.texts(["a small red circle"])
    padded = [torch.nn.functional.pad(torch.from_numpy(x), (0, 5)) for x in (input_ids, mask)]
    short, long = tiny_model.encode_text(input_ids, mask), tiny_model.encode_text(*padded)
    torch.testing.assert_close(short.text_feat, long.text_feat, rtol=2e-5, atol=2e-5)


def test_keys_and_values_of_a_slice_are_those_of_its_images() -> None:
    key, value = torch.randn(2, 5, 2, 3, 4)
    for rows in (slice(1, 3), torch.tensor([3, 1, 3])):
        chosen = KeyValue(key, value).select(rows)
        assert torch.equal(chosen.key, key[rows]) and torch.equal(chosen.value, value[rows])
