"""Leaving out padding, and tokens nobody asks for, changes no state of the others, and no gradient."""

from __future__ import annotations

import pytest
import torch

from tcl.models.attention import Tokens
from tests.conftest import make_tiny_model

MASK = torch.arange(6)[None, :] < torch.tensor([6, 1, 4, 3])[:, None]


def test_packing_and_spreading() -> None:
    tokens = Tokens.real(MASK)
    assert tokens is not None and tokens.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 12, 13, 14, 15, 18, 19, 20]
    states = torch.randn(4, 6, 3)
    spread = tokens.spread(tokens.gather(states))
    assert torch.equal(spread[MASK], states[MASK]) and not spread[~MASK].any()
    first = Tokens.first(MASK)
    assert torch.equal(first.select(states, None), states[:, 0])
    assert torch.equal(first.select(tokens.gather(states), tokens), states[:, 0])
    assert Tokens.real(torch.ones(2, 3, dtype=torch.bool)) is None


@pytest.mark.parametrize("packed", [False, True])
def test_states_and_gradients_are_those_of_the_plain_computation(packed: bool) -> None:
    torch.manual_seed(0)
    model = make_tiny_model()
    words = model.text_encoder.bert.embeddings.word_embeddings.num_embeddings
    ids = torch.randint(words, MASK.shape)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    predicted = Tokens(torch.tensor([1, 5, 13, 19]), *MASK.shape)

    def states(lean: bool) -> list[torch.Tensor]:
        model.zero_grad()
        tokens = Tokens.real(MASK) if packed and lean else None
        text = model.encode_text(ids, MASK, tokens)
        key_values = model.image_key_values(model.encode_image(images).image_embeds)
        fused = model.fuse(text.text_embeds, MASK, key_values, tokens, predicted if lean else None)
        wanted = fused if lean else predicted.gather(fused)
        with torch.no_grad():
            everywhere = model.fuse(text.text_embeds, MASK, key_values, tokens)
        assert tokens is None or not everywhere[~MASK].any()
        (wanted.square().sum() + text.text_feat[:, 0].sum()).backward()
        gradients = [p.grad for p in model.text_encoder.parameters() if p.grad is not None]
        assert not any(gradient.is_sparse for gradient in gradients)
        return [wanted.detach(), everywhere[MASK], text.text_embeds[MASK].detach(), *gradients]

    for lean, plain in zip(states(lean=True), states(lean=False), strict=True):
        torch.testing.assert_close(lean, plain, atol=1e-5, rtol=1e-4)
