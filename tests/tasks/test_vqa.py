"""Visual question answering against the published implementation, and the ranking against its plain formula."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tcl.evaluation import vqa
from tcl.evaluation.vqa import AnswerList, rank_answers, tokenize_answers
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tcl.models.vqa import AskedQuestions, VqaModel, decoder_state
from tcl.objective.vqa import VqaObjective
from tests.conftest import CAPTIONS, GOLDEN, TINY, make_tiny_model
from tests.tasks.cases import MOMENTUM, TaskCase, close, load_case, pixels

ANSWERS = ["yes", "no", "a small red circle", "small green", "blue", "yes a star", "two"]


@pytest.fixture
def case(golden: Any) -> TaskCase:
    """The recorded case with the teacher moved, as at the start of the recorded forward."""
    case = load_case(golden, "vqa")
    case.teacher.update(case.model, MOMENTUM)
    return case


def ask(case: TaskCase, net: Any) -> AskedQuestions:
    t = case.tensors
    image_embeds = net.encode_image(pixels(t["in/image_u8"])).image_embeds
    return net.ask(net.image_key_values(image_embeds), t["in/question_ids"], t["in/question_mask"].bool())


def question_of_answer(case: TaskCase) -> Tensor:
    counts = case.tensors["in/n_answers"]
    return torch.arange(len(counts)).repeat_interleave(counts)


@torch.no_grad()
def test_states_and_logits(case: TaskCase) -> None:
    t = case.tensors
    mask = t["in/question_mask"].bool()
    image_embeds = case.model.encode_image(pixels(t["in/image_u8"])).image_embeds
    close(image_embeds, t["mid/image_embeds"], "image_embeds")
    text = case.model.encode_text(t["in/question_ids"], mask)
    close(
        case.model.fuse_images(case.model.image_key_values(image_embeds), text),
        t["mid/question_states"],
        "question_states",
    )
    real = t["in/answer_mask"].bool()  # the recorded states of padding see padding
    for net, name in ((case.model, "mid/answer_logits"), (case.teacher.model, "mid/logits_m")):
        states = net.decode(t["in/answer_ids"], ask(case, net).select(question_of_answer(case)))
        logits = net.text_decoder.mlm_logits(states)
        width = t[name].shape[1]
        close(logits[:, :width][real[:, :width]], t[name][real[:, :width]], name)


def test_loss(case: TaskCase) -> None:
    t = case.tensors
    objective = VqaObjective(case.model)
    losses = objective(
        pixels(t["in/image_u8"]),
        t["in/question_ids"],
        t["in/question_mask"].bool(),
        t["in/answer_ids"],
        t["in/answer_mask"].bool(),
        question_of_answer(case),
        t["in/weights"],
    )
    assert len(set(case.values["loss_by_alpha"].values())) == 1  # the published distillation changes nothing
    close(losses.total, t["out/loss"], "loss")
    assert losses.named() == {"loss": losses.total} and not losses.named()["loss"].requires_grad
    losses.total.backward()
    case.check_gradients()
    case.check_teacher()
    assert case.trained() == case.recorded_trained()


@pytest.mark.parametrize("top_k", json.loads((GOLDEN / "vqa.json").read_text())["rank_k"])
@pytest.mark.parametrize(("rows", "tokens"), [(512, 2048), (8, 3), (2, 1)])
def test_ranking(case: TaskCase, top_k: int, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever pieces memory is bounded to; no piece is smaller than the three questions."""
    monkeypatch.setattr(vqa, "ROWS", rows)
    monkeypatch.setattr(vqa, "TOKENS", tokens)
    decode, log_likelihood = VqaModel.decode, VqaModel.log_likelihood
    decoded, looked_up = [], []

    def decoding(self: VqaModel, answer_ids: Tensor, question: AskedQuestions) -> Tensor:
        decoded.append(len(answer_ids))
        return decode(self, answer_ids, question)

    def looking_up(self: VqaModel, states: Tensor, wanted: Tensor) -> Tensor:
        looked_up.append(len(states))
        return log_likelihood(self, states, wanted)

    monkeypatch.setattr(VqaModel, "decode", decoding)
    monkeypatch.setattr(VqaModel, "log_likelihood", looking_up)
    t = case.tensors
    answers = AnswerList(t["rank/answer_ids"], t["rank/answer_mask"].bool())
    question = ask(case, case.model)
    ranking = rank_answers(case.model, question, answers, top_k)
    assert torch.equal(ranking.answers, t[f"rank{top_k}/topk_ids"])
    close(ranking.probabilities, t[f"rank{top_k}/topk_probs"], "topk_probs")
    assert question.key_values[0].key.requires_grad and not ranking.probabilities.requires_grad
    assert max(decoded) <= max(rows, 3) and max(looked_up) <= tokens
    assert sum(decoded) == 3 + 3 * top_k  # [CLS] alone, and the chosen ones


@torch.no_grad()
def test_the_first_token_and_the_sums(case: TaskCase) -> None:
    t = case.tensors
    question = ask(case, case.model)
    start = case.model.decode(t["rank/answer_ids"][:1, :1].expand(3, 1), question)
    logits = case.model.text_decoder.mlm_logits(start)[:, 0]
    close(logits, t["rank2/first_token_logits"], "first_token_logits")
    close(logits.softmax(dim=1)[:, t["rank/answer_ids"][:, 1]], t["rank2/prob_first_token"], "prob_first_token")
    ranking = rank_answers(case.model, question, AnswerList(t["rank/answer_ids"], t["rank/answer_mask"].bool()), 10)
    recorded = t["rank10/log_probs_sum"].sort(dim=1, descending=True).values.softmax(dim=1)
    close(ranking.probabilities, recorded, "log_probs_sum")


def model_of(base: TCL, **changes: Any) -> VqaModel:
    head = HeadConfig.model_validate({"task": "vqa", "labels": ANSWERS, "decoder_layers": 2} | changes)
    model = attach_head(base, head)
    assert isinstance(model, VqaModel)
    return model.eval()


@torch.no_grad()
def test_ranking_equals_scoring_each_answer_alone(fresh_model: TCL) -> None:
    model = model_of(fresh_model)
    answers = tokenize_answers(ANSWERS, model.processor.tokenizer)
    input_ids, mask = model.processor.texts(CAPTIONS)
    embeds = model.encode_image(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)).image_embeds
    question = model.ask(
        model.image_key_values(embeds),
        torch.from_numpy(input_ids),
        torch.from_numpy(mask).bool(),
        torch.tensor([[0], [1], [1], [0]]),
    )
    ranking = rank_answers(model, question, answers, top_k=100)
    for row in range(len(CAPTIONS)):
        own = question.select(torch.tensor([row]))
        scores = []
        for ids, real in zip(answers.input_ids, answers.mask, strict=True):
            ids = ids[real][None]
            logits = model.text_decoder.mlm_logits(model.decode(ids[:, :-1], own))[0].log_softmax(dim=-1)
            likelihood = logits[torch.arange(len(logits)), ids[0, 1:]]
            scores.append(likelihood.sum() + likelihood[0])
        expected = torch.stack(scores).softmax(dim=0)
        assert torch.allclose(ranking.probabilities[row], expected[ranking.answers[row]], atol=1e-5)
        assert ranking.probabilities[row].sum().item() == pytest.approx(1)


@torch.no_grad()
def test_likelihoods_in_mixed_precision(fresh_model: TCL) -> None:
    """Of logits with half the bits they are computed in float32."""
    model = model_of(fresh_model)
    ids = torch.cat([torch.full((6, 1), 2), torch.randint(5, 50, (6, 4))], dim=1)
    answers = AnswerList(ids, torch.ones_like(ids).bool())
    with torch.autocast("cpu", torch.bfloat16):
        embeds = model.encode_image(torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)).image_embeds
        question = model.ask(model.image_key_values(embeds), torch.tensor([[2, 9, 8]]), torch.ones(1, 3).bool())
        ranking = rank_answers(model, question, answers, top_k=6)
        logits = model.text_decoder.mlm_logits(model.decode(ids[:, :-1], question))
    assert logits.dtype == torch.bfloat16
    found = logits.float().log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    expected = (found.sum(dim=1) + found[:, 0]).softmax(dim=0)[ranking.answers[0]]
    torch.testing.assert_close(ranking.probabilities[0], expected, rtol=1e-5, atol=1e-6)


def test_answers_end_where_the_decoder_stops(tiny_model: TCL) -> None:
    tokenizer = tiny_model.processor.tokenizer
    answers = tokenize_answers(["blue", "a star"], tokenizer)
    assert (answers.input_ids[:, 0] == tokenizer.cls_id).all()
    for ids, real in zip(answers.input_ids, answers.mask, strict=True):
        assert ids[real][-1] == tokenizer.sep_id


def test_the_decoder_starts_from_the_fusion_layers(golden: Any, fresh_model: TCL) -> None:
    bert = fresh_model.text_encoder.bert
    model = model_of(fresh_model, decoder_layers=3)
    decoder = model.text_decoder.bert
    assert torch.equal(decoder.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(model.text_decoder.cls.predictions.bias, model.text_encoder.cls.predictions.bias)
    for layer in range(2):
        ours, theirs = decoder.encoder.layer[layer].state_dict(), bert.encoder.layer[2 + layer].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = model_of(model, decoder_layers=3, labels=["other"])
    assert again.text_decoder is model.text_decoder and again.head.labels == ["other"]
    assert len(model_of(model, decoder_layers=1).text_decoder.bert.encoder.layer) == 1


def test_the_decoder_has_the_settings_of_the_encoder() -> None:
    text = TINY["text_encoder_args"] | {"dropout": 0.3, "layer_norm_eps": 1e-3}
    base = make_tiny_model(text_encoder_args=text)
    layers = str(base.text_encoder.bert.encoder.layer[2:])
    assert str(model_of(base).text_decoder.bert.encoder.layer) == layers and "p=0.3" in layers and "0.001" in layers


def test_a_decoder_of_images_of_another_width(tiny_model: TCL) -> None:
    base = make_tiny_model(image_encoder_args={"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 4})
    cross = model_of(base).text_decoder.bert.encoder.layer[0].crossattention
    source = base.text_encoder.bert.encoder.layer[2].crossattention
    assert cross.self.key.weight.shape != source.self.key.weight.shape
    assert torch.equal(cross.self.query.weight, source.self.query.weight)


def test_decoder_names_are_those_of_the_published_script(golden: Any) -> None:
    """`remap.json` at real depth: each decoder weight and where it comes from."""
    script = golden("remap")[1]["scripts"]["VQA"]["renamed"]
    wanted = {
        target: source
        for target, source in script.items()
        if target.startswith("text_decoder.")
        and not target.endswith("position_ids")
        and "predictions.decoder" not in target
    }
    encoder = {
        source.removeprefix("text_encoder."): source
        for source in golden("remap")[1]["source_keys"]
        if source.startswith("text_encoder.")
        and not source.endswith("position_ids")
        and "predictions.decoder" not in source
    }
    state = decoder_state(encoder, 6)
    assert {f"text_decoder.{target}": source for target, source in state.items()} == wanted
