"""Retrieval evaluation against the plain one, the recorded one, and itself in other pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tcl.data.index import PairIndex, read_pairs
from tcl.errors import DataError
from tcl.models.tcl import TCL
from tcl.tasks import reranking
from tcl.tasks.reranking import PackedTexts, match_logits, rank_by_vectors, score_pairs
from tcl.tasks.retrieval import RetrievalResult, RetrievalSet, evaluate_retrieval, reranked_ranks
from tcl.tasks.share import ALONE, Share
from tests.conftest import make_tiny_model
from tests.plain_metrics import retrieval_metrics
from tests.tasks.shares import in_processes
from tests.test_parity import _same_metrics, close, load_case, pixels

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "the", "grass", "sand", "near", "two", "small", "houses", "white"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> PairIndex:
    """Nine images with one to three captions each, of one to nine words."""
    folder = tmp_path_factory.mktemp("pairs")
    draw = np.random.default_rng(0)
    rows = []
    for row in range(9):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        captions = [" ".join(draw.choice(WORDS, draw.integers(1, 10))) for _ in range(1 + row % 3)]
        rows.append(json.dumps({"image": f"{row}.png", "captions": captions}))
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    return read_pairs([str(folder / "pairs.jsonl")])


@torch.no_grad()
def plain_evaluation(model: TCL, index: PairIndex, top_k: int) -> tuple[dict[str, float], dict[str, float]]:
    """One query at a time: all captions at one length, the image's states once per candidate."""
    pairs = RetrievalSet.from_pairs(index)
    images = model.encode_image(model.processor.images(pairs.images))
    texts = model.encode_text(*model.processor.texts(pairs.texts))
    sims = images.image_feat @ texts.text_feat.T
    score_i2t, score_t2i = torch.full(sims.shape, -100.0), torch.full(sims.T.shape, -100.0)

    def match(embeds: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return model.itm_head(model.fuse(states, mask, model.image_key_values(embeds))[:, 0])[:, 1]

    for i, row in enumerate(sims):
        best = row.topk(min(top_k, len(row))).indices
        embeds = images.image_embeds[i].expand(len(best), -1, -1)
        score_i2t[i, best] = match(embeds, texts.text_embeds[best], texts.attention_mask[best])
    for t, row in enumerate(sims.T):
        best = row.topk(min(top_k, len(row))).indices
        states, mask = texts.text_embeds[t].expand(len(best), -1, -1), texts.attention_mask[t].expand(len(best), -1)
        score_t2i[t, best] = match(images.image_embeds[best], states, mask)
    return (
        retrieval_metrics(sims.numpy(), sims.T.numpy(), pairs.image_of_text),
        retrieval_metrics(score_i2t.numpy(), score_t2i.numpy(), pairs.image_of_text),
    )


@torch.no_grad()
def score_matrices(
    model: TCL, embeds: Tensor, image_feat: Tensor, ids: Any, mask: Any, top_k: int, chunk: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """The published form of the scores: [I, T] and [T, I], -100 where not re-ranked."""
    everything = np.arange(len(ids))
    texts = PackedTexts(model, ids, mask, 7, everything)
    owner = torch.arange(len(ids)) * len(embeds) // len(ids)
    ranking = rank_by_vectors(image_feat, texts.text_feat, owner, top_k)
    chunks = (
        (torch.arange(s, min(s + chunk, len(embeds))), embeds[s : s + chunk]) for s in range(0, len(embeds), chunk)
    )

    def some(rows: Tensor) -> PackedTexts:
        return texts if keep else PackedTexts(model, ids, mask, 7, rows.numpy())

    pairs = ranking.pairs()
    by_image, by_text = ranking.spread(pairs, score_pairs(model, chunks, some, pairs, len(ids)))
    empty = torch.full((len(embeds), len(ids)), -100.0)
    return empty.scatter(1, ranking.of_image, by_image), empty.T.scatter(1, ranking.of_text, by_text)


@pytest.mark.parametrize("keep", [True, False])
def test_recorded_evaluation(golden: Any, keep: bool) -> None:
    case = load_case(golden, "retrieval")
    t, recorded = case.tensors, case.values["eval"]
    small = t["eval/image_quarter_u8"]
    with torch.no_grad():
        images = case.model.encode_image(pixels(small.repeat_interleave(4, -1).repeat_interleave(4, -2)))
    ids, mask = t["eval/input_ids"].numpy(), t["eval/attention_mask"].numpy()
    score_i2t, score_t2i = score_matrices(
        case.model, images.image_embeds, images.image_feat, ids, mask, recorded["k_test"], 5, keep
    )
    close(score_i2t, t["eval/score_i2t"], "score_i2t")
    close(score_t2i, t["eval/score_t2i"], "score_t2i")
    owner = np.arange(recorded["n_images"]).repeat(recorded["captions_per_image"])
    _same_metrics(retrieval_metrics(score_i2t.numpy(), score_t2i.numpy(), owner), recorded["result"])


@pytest.mark.parametrize("top_k", [1, 4, 1000])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_same_metrics_as_the_plain_evaluation(tiny_model: TCL, index: PairIndex, top_k: int, memory: int) -> None:
    result = evaluate_retrieval(tiny_model, index, rerank=top_k, batch_size=4, token_memory=memory)
    vectors, reranked = plain_evaluation(tiny_model, index, top_k)
    assert result.vectors == pytest.approx(vectors) and result.reranked == pytest.approx(reranked)
    assert (result.images, result.texts, result.bad) == (9, 18, [])


def test_part_of_the_images_kept(tiny_model: TCL, index: PairIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one of three chunks: the others are encoded once more, and nothing else."""
    expected = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4)
    encoded = []
    encode = TCL.encode_image

    def counted(self: TCL, pixel_values: Any) -> Any:
        encoded.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(TCL, "encode_image", counted)
    chunk = 4 * 17 * 32 * 4
    assert evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4, token_memory=2 * chunk) == expected
    assert encoded == [4, 4, 1, 4, 1]
    encoded.clear()
    evaluate_retrieval(tiny_model, index, batch_size=4)
    assert encoded == [4, 4, 1]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_texts_a_few_at_a_time(tiny_model: TCL, index: PairIndex, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    expected = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4, token_memory=memory)
    monkeypatch.setattr("tcl.tasks.reranking.TEXTS", 3)
    result = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4, token_memory=memory)
    assert result.reranked == expected.reranked
    scores, wanted = (of_one.ranked.candidate_scores for of_one in (result, expected))
    assert scores is not None and wanted is not None
    for of_side, expected_of_side in zip(scores, wanted, strict=True):
        torch.testing.assert_close(of_side, expected_of_side)


def test_blocks_of_similarities_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    image_feat, text_feat = (torch.randn(size, 6, generator=generator) for size in (11, 20))
    owner = torch.cat([torch.arange(11), torch.randint(11, (9,), generator=generator)])
    whole = rank_by_vectors(image_feat, text_feat, owner, 5)
    monkeypatch.setattr(reranking, "BLOCK", 3)
    pieces = rank_by_vectors(image_feat, text_feat, owner, 5)
    sims = image_feat @ text_feat.T
    for ranking in (whole, pieces):
        assert torch.equal(ranking.of_image, sims.topk(5, dim=1).indices)
        assert torch.equal(ranking.of_text, sims.T.topk(5, dim=1).indices)
    assert torch.equal(whole.i2t, pieces.i2t) and torch.equal(whole.t2i, pieces.t2i)
    metrics = retrieval_metrics(sims.numpy(), sims.T.numpy(), owner.numpy())
    assert metrics["i2t_r5"] == pytest.approx(100 * (whole.i2t < 5).float().mean().item())
    assert metrics["t2i_r1"] == pytest.approx(100 * (whole.t2i < 1).float().mean().item())


def test_equal_vectors_never_flatter() -> None:
    ranking = rank_by_vectors(torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 0, 1, 2]), 2)
    assert ranking.i2t.tolist() == [2, 3, 3] and ranking.t2i.tolist() == [2, 2, 2, 2]


def test_ranks_after_reranking_by_hand() -> None:
    owner = torch.tensor([0, 1, 2])
    # Each image and each text looks at two candidates; text 2 does not look at its own image.
    ranking = rank_by_vectors(torch.eye(3), torch.tensor([[1.0, 0.5, 0], [0.4, 1, 0], [0.9, 0.8, 0.1]]), owner, 2)
    pairs = ranking.pairs()
    scores = torch.arange(len(pairs)).float()
    i2t, t2i = reranked_ranks(ranking, pairs, scores, owner)
    assert t2i[2] == 2  # both others are ahead of what was not looked at
    by_image, _ = ranking.spread(pairs, scores)
    for image in range(3):
        own = (ranking.of_image[image] == image).nonzero()
        expected = int((by_image[image] > by_image[image][own]).sum()) if len(own) else 2
        assert i2t[image] == expected


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("memory", [0, 3 * 17 * 32 * 4, 1 << 30])
def test_shares_are_the_whole_bit_for_bit(tiny_model: TCL, index: PairIndex, world_size: int, memory: int) -> None:
    """Batches of 2 and 1 of 9 images; 7 processes are more than there are batches."""

    def evaluate(share: Share) -> tuple[Any, ...]:
        result = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=2, share=share, token_memory=memory)
        return result, list(result.ranked.predictions())

    assert in_processes(world_size, evaluate) == [evaluate(ALONE)] * world_size


def test_one_ranking_for_all(tiny_model: TCL, index: PairIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes whose devices round differently choose the same pairs: those of the first."""
    calls = []

    def of_this_process(*arguments: Any) -> Any:
        calls.append(arguments)
        ranking = rank_by_vectors(*arguments)
        return ranking if len(calls) == 1 else replace(ranking, of_image=ranking.of_image.flip(1))

    monkeypatch.setattr("tcl.tasks.retrieval.rank_by_vectors", of_this_process)
    first, second = in_processes(
        2, lambda share: evaluate_retrieval(tiny_model, index, rerank=2, batch_size=2, share=share)
    )
    assert first == second and len(calls) == 1
    monkeypatch.undo()
    assert first == evaluate_retrieval(tiny_model, index, rerank=2, batch_size=2)


def test_what_one_share_cannot_read_all_leave_out(tiny_model: TCL, index: PairIndex, tmp_path: Path) -> None:
    rows = [json.dumps({"image": pair.image, "captions": list(pair.captions)}) for pair in index]
    rows.insert(2, json.dumps({"image": "gone.png", "caption": "a dog"}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    pairs = read_pairs([str(tmp_path / "pairs.jsonl")])

    def evaluate(share: Share) -> RetrievalResult:
        return evaluate_retrieval(tiny_model, pairs, rerank=4, batch_size=2, share=share, token_memory=0)

    expected = evaluate(ALONE)
    assert expected.images == 9 and "gone.png" in expected.bad[0]["image"] and "gone" not in expected.bad[0]["reason"]
    assert in_processes(3, evaluate) == [expected] * 3


def test_predictions_say_what_the_metrics_count(tiny_model: TCL, index: PairIndex) -> None:
    result = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4)
    lines = list(result.ranked.predictions())
    assert [line["query"] for line in lines] == ["image"] * 9 + ["text"] * 18
    for name, figures in (("vectors", result.vectors), ("reranked", result.reranked)):
        for way, query in (("i2t", "image"), ("t2i", "text")):
            own = [line for line in lines if line["query"] == query]
            for k in (1, 5, 10):
                share = 100 * sum(line[name]["rank"] <= k for line in own) / len(own)
                assert figures is not None and figures[f"{way}_r{k}"] == pytest.approx(share)
            for line in own:
                scores = [candidate["score"] for candidate in line[name]["top"]]
                hits = [candidate["right"] for candidate in line[name]["top"]]
                assert scores == sorted(scores, reverse=True)
                assert True not in hits or hits.index(True) + 1 == line[name]["rank"]
    pairs = RetrievalSet.from_pairs(index)
    image = lines[0]["vectors"]["top"]
    assert len(image) == 10 and all(pairs.texts[found["text_id"]] == found["text"] for found in image)
    text = lines[-1]
    assert text["image"] == pairs.images[-1] and len(text["vectors"]["top"]) == 9 and len(text["reranked"]["top"]) == 4


def test_progress_reaches_its_total(tiny_model: TCL, index: PairIndex) -> None:
    calls: list[tuple[int, int]] = []
    evaluate_retrieval(
        tiny_model, index, rerank=2, batch_size=4, progress=lambda done, *, total: calls.append((done, total))
    )
    assert sum(done for done, _ in calls) == calls[-1][1] > calls[0][1] == 9


def test_texts_come_back_as_they_were_encoded(tiny_model: TCL) -> None:
    texts = ["a dog", "a small white house near the red sand", "grass", "two dogs run"]
    ids, mask = tiny_model.processor.texts(texts)
    with torch.no_grad():
        packed = PackedTexts(tiny_model, ids, mask, 2, np.arange(4))
        whole = tiny_model.encode_text(ids, mask)
        states, valid = packed.padded(torch.tensor([2, 0, 3]))
    close(packed.text_feat, whole.text_feat, "text_feat")
    rows = [2, 0, 3]
    assert torch.equal(valid, whole.attention_mask[rows][:, : valid.shape[1]])
    first = tiny_model.text_encoder.bert.fusion_layers()[0]
    with torch.no_grad():
        expected = first.attention(whole.text_embeds, whole.attention_mask[:, None, None, :])
    close(states[valid], expected[rows][:, : valid.shape[1]][valid], "states")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_verdict_needs_no_other_token_of_the_last_layer(layers: int) -> None:
    model = make_tiny_model(fusion_layer=4 - layers)
    ids, mask = model.processor.texts(["a dog", "two cats on the grass", "a house"])
    with torch.no_grad():
        packed = PackedTexts(model, ids, mask, 3, np.arange(3))
        images = model.image_key_values(model.encode_image(torch.rand(1, 3, 32, 32)).image_embeds)
        text = model.encode_text(ids, mask)
        expected = model.itm_head(model.fuse(text.text_embeds, text.attention_mask, images)[:, 0])[:, 1]
        close(match_logits(model, *packed.padded(torch.arange(3)), images), expected, "match")


def test_images_that_cannot_be_read_leave_with_their_captions(
    tiny_model: TCL, index: PairIndex, tmp_path: Path
) -> None:
    rows = [{"image": pair.image, "captions": pair.captions} for pair in index]
    rows.insert(3, {"image": str(tmp_path / "none.png"), "captions": ["a dog"]})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    result = evaluate_retrieval(tiny_model, read_pairs([str(tmp_path / "pairs.json")]), rerank=3, batch_size=4)
    clean = evaluate_retrieval(tiny_model, index, rerank=3, batch_size=4)
    assert result.vectors == clean.vectors and result.reranked == clean.reranked
    assert [bad["image"] for bad in result.bad] == [str(tmp_path / "none.png")]


def test_fewer_than_two_images(tiny_model: TCL, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text('[{"image": "none.png", "caption": "a dog"}]')
    with pytest.raises(DataError, match=r"found 0; the first: .*none.png"):
        evaluate_retrieval(tiny_model, read_pairs([str(tmp_path / "pairs.json")]))


@pytest.mark.parametrize("part", ["vision_proj", "itm_head"])
def test_weights_that_are_not_finite(index: PairIndex, part: str) -> None:
    model = make_tiny_model()
    torch.nn.init.constant_(getattr(model, part).weight, torch.nan)
    with pytest.raises(DataError, match="not numbers"):
        evaluate_retrieval(model, index, rerank=2)
