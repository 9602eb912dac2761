"""Retrieval evaluation against the plain one, the recorded one, and itself in other pieces."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tcl.data.pairs.table import PairIndex, read_pairs
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError
from tcl.evaluation import reranking
from tcl.evaluation.reranking import PackedTexts, match_logits, rank_by_vectors, score_pairs
from tcl.evaluation.retrieval import RetrievalResult, RetrievalSet, evaluate_retrieval, reranked_ranks
from tcl.models.tcl import TCL
from tests.conftest import make_tiny_model
from tests.objective.test_parity import _same_metrics, close, load_case, pixels
from tests.plain_metrics import positive_ranks, retrieval_metrics
from tests.tasks.shares import in_processes

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


def test_rows_of_one_image_come_together(tmp_path: Path) -> None:
    rows = [("a.png", ["one", "two"]), ("b.png", ["three"]), ("a.png", ["four"]), ("c.png", ["five"])]
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": image, "captions": of_row} for image, of_row in rows]))
    pairs = RetrievalSet.from_pairs(read_pairs([str(tmp_path / "pairs.json")]))
    assert [Path(image).name for image in pairs.images] == ["a.png", "b.png", "c.png"]
    assert (pairs.texts, pairs.image_of_text.tolist()) == (["one", "two", "three", "four", "five"], [0, 0, 1, 0, 2])
    some = pairs.only(np.array([0, 2]))
    assert some.images == [pairs.images[0], pairs.images[2]]
    assert (some.texts, some.image_of_text.tolist()) == (["one", "two", "four", "five"], [0, 0, 0, 1])


@torch.no_grad()
def plain_evaluation(model: TCL, index: PairIndex, top_k: int) -> tuple[dict[str, float], dict[str, float]]:
    """One query at a time: all captions at one length, the image's states once per candidate."""
    pairs = RetrievalSet.from_pairs(index)
    images = model.encode_image(model.processor.images(pairs.images))
    texts = model.encode_text(*model.processor.texts(pairs.texts))
    sims = images.image_feat @ texts.text_feat.T
    score_i2t, score_t2i = sims - 100, sims.T - 100  # what is not re-ranked, in its order

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
    assert result.figures() == pytest.approx(reranked | {f"vectors_{name}": vectors[name] for name in vectors})
    assert json.loads(json.dumps(result.to_dict())) == {
        "vectors": result.vectors, "reranked": result.reranked, "images": 9, "texts": 18, "bad": []
    }  # fmt: skip
    assert len(repr(result)) < 1000  # without the rankings


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many images and texts are encoded in each batch from now on."""
    sizes: dict[str, list[int]] = {"images": [], "texts": []}
    encode_image, encode_text = TCL.encode_image, TCL.encode_text

    def images(self: TCL, pixel_values: Any) -> Any:
        sizes["images"].append(len(pixel_values))
        return encode_image(self, pixel_values)

    def texts(self: TCL, input_ids: Any, attention_mask: Any) -> Any:
        sizes["texts"].append(len(input_ids))
        return encode_text(self, input_ids, attention_mask)

    monkeypatch.setattr(TCL, "encode_image", images)
    monkeypatch.setattr(TCL, "encode_text", texts)
    return sizes


def test_part_of_the_images_kept(tiny_model: TCL, index: PairIndex, encoded: dict[str, list[int]]) -> None:
    """Room for one of three chunks: the others are encoded once more, and nothing else."""
    expected = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4)
    once = {"images": [4, 4, 1], "texts": [4, 4, 4, 4, 2]}
    assert encoded == once  # by default there is room for all of so small a set
    chunk = 4 * 17 * 32 * 4
    for memory, again in ((2 * chunk, [4, 1]), (2 * chunk - 2, [4, 4, 1])):
        encoded["images"].clear()
        assert evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4, token_memory=memory) == expected
        assert encoded["images"] == [4, 4, 1, *again]
    for sizes in encoded.values():
        sizes.clear()
    alone = evaluate_retrieval(tiny_model, index, batch_size=4)
    assert encoded == once and alone.reranked is None and alone.figures() == alone.vectors == expected.vectors


def test_texts_are_kept_where_they_fit(tiny_model: TCL, index: PairIndex, encoded: dict[str, list[int]]) -> None:
    texts = [caption for pair in index for caption in pair.captions]
    whole = int(tiny_model.processor.texts(texts)[1].sum()) * 32 * 4  # without padding
    for memory, again in ((2 * whole, False), (2 * whole - 2, True)):
        encoded["texts"].clear()
        evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4, token_memory=memory)
        assert (sum(encoded["texts"]) > len(texts)) == again


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_texts_a_few_at_a_time(tiny_model: TCL, index: PairIndex, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    expected = evaluate_retrieval(tiny_model, index, rerank=4, batch_size=4, token_memory=memory)
    monkeypatch.setattr("tcl.evaluation.reranking.TEXTS", 3)
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
    whole = rank_by_vectors(image_feat, text_feat, owner, 7)
    monkeypatch.setattr(reranking, "BLOCK", 3)
    pieces = rank_by_vectors(image_feat, text_feat, owner, 5)
    with torch.autocast("cpu", torch.bfloat16):  # as during a training in mixed precision
        mixed = rank_by_vectors(image_feat, text_feat, owner, 5)
    sims = image_feat @ text_feat.T
    texts_of_image = [np.flatnonzero(owner == image) for image in range(11)]
    for ranking in (whole.first(5), pieces, mixed):
        for found, scores, nearest in (
            (ranking.of_image, ranking.image_scores, sims.topk(5, dim=1)),
            (ranking.of_text, ranking.text_scores, sims.T.topk(5, dim=1)),
        ):
            assert torch.equal(found, nearest.indices)
            torch.testing.assert_close(scores, nearest.values)
        assert ranking.i2t.tolist() == positive_ranks(sims.numpy(), texts_of_image).tolist()
        assert ranking.t2i.tolist() == positive_ranks(sims.T.numpy(), list(owner.numpy()[:, None])).tolist()


def test_vectors_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "BLOCK", 2)
    feats = torch.eye(5)
    feats[4, 0] = torch.nan
    with pytest.raises(DataError, match="not numbers"):
        rank_by_vectors(feats, torch.eye(5), torch.arange(5), 2)


def test_equal_vectors_never_flatter() -> None:
    ranking = rank_by_vectors(torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 0, 1, 2]), 2)
    assert ranking.i2t.tolist() == [2, 3, 3] and ranking.t2i.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("top_k", [1, 2, 4, 100])
def test_ranks_after_reranking(top_k: int) -> None:
    """Re-ranked candidates, then the others by vectors; many scores are equal, which never flatters."""
    generator = torch.Generator().manual_seed(1)
    image_feat, text_feat = (torch.randn(size, 3, generator=generator) for size in (6, 11))
    owner = torch.cat([torch.arange(6), torch.randint(6, (5,), generator=generator)])
    match = torch.randint(3, (6, 11), generator=generator).float()
    ranking = rank_by_vectors(image_feat, text_feat, owner, top_k)
    pairs = ranking.pairs()
    looked_at = {(i, t) for i, row in enumerate(ranking.of_image.tolist()) for t in row}
    looked_at |= {(i, t) for t, row in enumerate(ranking.of_text.tolist()) for i in row}
    assert pairs.tolist() == sorted(i * 11 + t for i, t in looked_at)
    i2t, t2i = reranked_ranks(ranking, pairs, match.flatten()[pairs], owner)
    others = image_feat @ text_feat.T - 100
    of_images = others.scatter(1, ranking.of_image, match.gather(1, ranking.of_image))
    of_texts = others.T.scatter(1, ranking.of_text, match.T.gather(1, ranking.of_text))
    texts_of_image = [np.flatnonzero(owner == image) for image in range(6)]
    assert i2t.tolist() == positive_ranks(of_images.numpy(), texts_of_image).tolist()
    assert t2i.tolist() == positive_ranks(of_texts.numpy(), list(owner.numpy()[:, None])).tolist()


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

    monkeypatch.setattr("tcl.evaluation.retrieval.rank_by_vectors", of_this_process)
    first, second = in_processes(
        2, lambda share: evaluate_retrieval(tiny_model, index, rerank=2, batch_size=2, share=share)
    )
    assert first == second and len(calls) == 1
    monkeypatch.undo()
    assert first == evaluate_retrieval(tiny_model, index, rerank=2, batch_size=2)


def test_what_one_share_cannot_read_all_leave_out(tiny_model: TCL, index: PairIndex, tmp_path: Path) -> None:
    rows = [json.dumps({"image": pair.image, "captions": list(pair.captions)}) for pair in index]
    rows.insert(4, json.dumps({"image": "lost.png", "caption": "a cat"}))
    rows.insert(2, json.dumps({"image": "gone.png", "caption": "a dog"}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    pairs = read_pairs([str(tmp_path / "pairs.jsonl")])

    def evaluate(share: Share) -> RetrievalResult:
        return evaluate_retrieval(tiny_model, pairs, rerank=4, batch_size=2, share=share, token_memory=0)

    expected = evaluate(ALONE)
    assert (expected.images, expected.texts) == (9, 18)
    assert [Path(bad["image"]).name for bad in expected.bad] == ["gone.png", "lost.png"]
    assert "gone" not in expected.bad[0]["reason"]
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


@pytest.mark.parametrize("world_size", [1, 2])
def test_progress_counts_images_then_pairs(
    tiny_model: TCL, index: PairIndex, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """Each process counts its own, and each pair once, whether its texts come in one piece or in many."""
    monkeypatch.setattr("tcl.evaluation.reranking.TEXTS", 3)
    calls: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]

    def evaluate(share: Share) -> RetrievalResult:
        def progress(done: int, *, total: int) -> None:
            calls[share.rank].append((done, total))

        return evaluate_retrieval(tiny_model, index, rerank=2, batch_size=4, share=share, progress=progress)

    results = in_processes(world_size, evaluate)
    images = [[4, 4, 1]] if world_size == 1 else [[4, 1], [4]]
    for of_one, sizes in zip(calls, images, strict=True):
        assert of_one[: len(sizes)] == [(size, sum(sizes)) for size in sizes]
        totals = {total for _, total in of_one[len(sizes) :]}
        assert totals == {sum(done for done, _ in of_one)}
    pairs = len(results[0].ranked.ranking.first(2).pairs())
    assert sum(done for of_one in calls for done, _ in of_one) == 9 + pairs


def test_texts_come_back_as_they_were_encoded(tiny_model: TCL) -> None:
    texts = ["a dog", "a small white house near the red sand", "grass", "two dogs run"]
    ids, mask = tiny_model.processor.texts(texts)
    with torch.no_grad():
        packed = PackedTexts(tiny_model, ids, mask, 2, np.arange(4))
        whole = tiny_model.encode_text(ids, mask)
        rows = [2, 0, 3, 1]  # of the last one the states end before those of the longest
        states, valid = packed.padded(torch.tensor(rows))
    close(packed.text_feat, whole.text_feat, "text_feat")
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
        passed: list[int] = []
        last = model.text_encoder.bert.fusion_layers()[-1]
        last.intermediate.dense.register_forward_hook(lambda _, inputs, output: passed.append(output[..., 0].numel()))
        close(match_logits(model, *packed.padded(torch.arange(3)), images), expected, "match")
    assert passed == [3]  # one of each text


def test_images_that_cannot_be_read_leave_with_their_captions(
    tiny_model: TCL, index: PairIndex, tmp_path: Path, encoded: dict[str, list[int]]
) -> None:
    rows = [{"image": pair.image, "captions": pair.captions} for pair in index]
    rows.insert(3, {"image": str(tmp_path / "none.png"), "captions": ["a dog"]})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    result = evaluate_retrieval(
        tiny_model, read_pairs([str(tmp_path / "pairs.json")]), rerank=3, batch_size=4, token_memory=2 * 3 * 17 * 32 * 4
    )
    assert encoded["images"] == [3, 4, 2, 4, 2]  # the first batch is kept
    clean = evaluate_retrieval(tiny_model, index, rerank=3, batch_size=4)
    assert result.vectors == clean.vectors and result.reranked == clean.reranked
    assert [bad["image"] for bad in result.bad] == [str(tmp_path / "none.png")]


def test_fewer_than_two_images(tiny_model: TCL, index: PairIndex, tmp_path: Path) -> None:
    rows = [{"image": "none.png", "caption": "a dog"}]
    rows += [{"image": pair.image, "caption": pair.captions[0]} for pair in list(index)[:2]]
    for count, message in ((1, "found 0; the first: .*none.png"), (2, "found 1; the first: .*none.png")):
        (tmp_path / "pairs.json").write_text(json.dumps(rows[:count]))
        with pytest.raises(DataError, match=message):
            evaluate_retrieval(tiny_model, read_pairs([str(tmp_path / "pairs.json")]))
    (tmp_path / "pairs.json").write_text(json.dumps(rows[1:2]))
    with pytest.raises(DataError, match=r"found 1$"):
        evaluate_retrieval(tiny_model, read_pairs([str(tmp_path / "pairs.json")]))
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    assert evaluate_retrieval(tiny_model, read_pairs([str(tmp_path / "pairs.json")])).images == 2


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_image_that_is_gone_when_it_is_needed_again(
    tiny_model: TCL, index: PairIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """Scores of the others alone would be figures of another set."""
    for pair in index:
        shutil.copy(pair.image, tmp_path)
    rows = [json.dumps({"image": Path(pair.image).name, "captions": list(pair.captions)}) for pair in index]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    pairs = read_pairs([str(tmp_path / "pairs.jsonl")])

    def then_it_goes(*arguments: Any) -> Any:
        (tmp_path / "6.png").unlink()
        return rank_by_vectors(*arguments)

    monkeypatch.setattr("tcl.evaluation.retrieval.rank_by_vectors", then_it_goes)

    def evaluate(share: Share) -> RetrievalResult:
        return evaluate_retrieval(tiny_model, pairs, rerank=2, batch_size=2, share=share, token_memory=0)

    for failure in in_processes(world_size, evaluate):
        assert isinstance(failure, DataError) and "6.png" in str(failure)


@pytest.mark.parametrize("part", ["vision_proj", "itm_head"])
def test_weights_that_are_not_finite(index: PairIndex, part: str) -> None:
    model = make_tiny_model()
    torch.nn.init.constant_(getattr(model, part).weight, torch.nan)
    with pytest.raises(DataError, match="not numbers"):
        evaluate_retrieval(model, index, rerank=2)
