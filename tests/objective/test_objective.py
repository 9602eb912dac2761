"""The whole objective against a plain transcription of the published formulas, for the shapes that break fast code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tcl.models.tcl import TCL
from tcl.objective.losses import lmi_loss
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.pretrain import PretrainObjective
from tcl.objective.sampling import MaskedTokens
from tests.conftest import make_tiny_model


def build(queue_size: int) -> PretrainObjective:
    model = make_tiny_model()
    teacher = MomentumTeacher(make_tiny_model(seed=1))
    return PretrainObjective(model, teacher, FeatureQueue(16, queue_size)).eval()


def make_batch(size: int, lengths: list[int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    attention_mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    input_ids = torch.randint(5, 40, (size, longest), generator=generator)
    input_ids[:, 0] = 2
    images = [torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8) for _ in range(2)]
    return {
        "images": images[0],
        "images_aug": images[1],
        "input_ids": input_ids.masked_fill(~attention_mask, 0),
        "attention_mask": attention_mask,
    }


def plain_losses(
    objective: PretrainObjective,
    batch: dict[str, Tensor],
    masked: MaskedTokens,
    alpha: float,
    negatives: tuple[Tensor, Tensor],
) -> Tensor:
    """Sample by sample, one fusion pass per pair, MLM logits everywhere: nothing shared, nothing skipped."""
    model, teacher, queue = objective.model, objective.teacher.model, objective.queue
    mask, temperature = batch["attention_mask"], model.temp
    image, text = model.encode_image(batch["images"]), model.encode_text(batch["input_ids"], mask)
    with torch.no_grad():
        image_m, text_m = teacher.encode_image(batch["images_aug"]), teacher.encode_text(batch["input_ids"], mask)
        image_all = torch.cat([image_m.image_feat, queue.image_queue.T])
        text_all = torch.cat([text_m.text_feat, queue.text_queue.T])
        patches = F.normalize(teacher.vision_proj(image_m.image_embeds[:, 1:]), dim=-1)
        patches = F.avg_pool2d(patches.transpose(1, 2).unflatten(2, (4, 4)), 2).flatten(2).transpose(1, 2)
        words = F.normalize(teacher.text_proj(text_m.text_embeds[:, 1:]), dim=-1)
    terms = []
    size = len(mask)
    for feature, own_all, other_all, feature_m in (
        (image.image_feat, image_all, text_all, image_m.image_feat),
        (text.text_feat, text_all, image_all, text_m.text_feat),
    ):
        soft = (feature_m @ other_all.T / temperature.detach()).softmax(1) * alpha
        targets = soft + (1 - alpha) * torch.eye(*soft.shape)
        terms.append(-((feature @ other_all.T / temperature).log_softmax(1) * targets).sum(1).mean())
        terms.append(F.cross_entropy(feature @ own_all.T / temperature, torch.arange(size)))
    for feature, local, valid in (
        (image.image_feat, patches, torch.ones(patches.shape[:2], dtype=torch.bool)),
        (text.text_feat, words, mask[:, 1:]),
    ):
        samples = []
        for i in range(size):
            others = torch.cat([local[j][valid[j]] for j in range(size) if j != i])
            each = [
                -(torch.cat([(feature[i] @ own)[None], others @ feature[i]]) / temperature).log_softmax(0)[0]
                for own in local[i][valid[i]]
            ]
            samples += [torch.stack(each).mean()] if each else []
        terms.append(torch.stack(samples).mean() if samples else torch.zeros(()))

    def fuse(net: TCL, text_embeds: Tensor, text_mask: Tensor, image_embeds: Tensor) -> Tensor:
        return net.fuse(text_embeds[None], text_mask[None], net.image_key_values(image_embeds[None]))[0]

    pairs = [(i, i) for i in range(size)] + [(i, int(negatives[0][i])) for i in range(size)]
    pairs += [(int(negatives[1][i]), i) for i in range(size)]
    states = [fuse(model, text.text_embeds[t], mask[t], image.image_embeds[i])[0] for t, i in pairs]
    labels = torch.tensor([1] * size + [0] * 2 * size)
    itm = F.cross_entropy(model.itm_head(torch.stack(states)), labels)

    logits = []
    for net, images in ((model, image), (teacher, image_m)):
        masked_text = net.encode_text(masked.input_ids, mask).text_embeds
        fused = [fuse(net, masked_text[i], mask[i], images.image_embeds[i]) for i in range(size)]
        logits.append(net.text_encoder.mlm_logits(torch.stack(fused)).flatten(0, 1))
    if len(masked.labels):
        log_p = logits[0].log_softmax(1)[masked.positions]
        hard = F.nll_loss(log_p, masked.labels)
        soft_loss = -(log_p * logits[1][masked.positions].detach().softmax(1)).sum(1).mean()
        mlm = (1 - alpha) * hard + alpha * soft_loss
    else:
        mlm = torch.zeros(())
    return torch.stack([torch.stack(terms).mean(), itm, mlm])


def layer_of(name: str) -> str:
    layer = re.match(r".*\.(layer|blocks)\.\d+", name)
    return layer[0] if layer else name.rpartition(".")[0]


CASES = [
    (2, 3, [4, 4]),
    (3, 7, [5, 2, 3]),
    (4, 1, [1, 1, 6, 2]),
    (5, 13, [3, 1, 4, 1, 5]),
    (6, 5, [2] * 6),
    (7, 4, [6, 5, 4, 3, 2, 1, 1]),
    (8, 9, [8, 1, 1, 1, 1, 1, 1, 1]),
    (9, 11, [2, 7, 1, 8, 2, 8, 1, 8, 2]),
    (3, 2, [1, 1, 1]),
]


@pytest.mark.parametrize(("size", "queue_size", "lengths"), CASES)
def test_fast_path_equals_the_plain_formulas(size: int, queue_size: int, lengths: list[int]) -> None:
    objective = build(queue_size)
    batch = make_batch(size, lengths, seed=size)
    generator = torch.Generator().manual_seed(size)
    maskable = batch["attention_mask"].clone()
    maskable[:, 0] = False
    positions = (maskable & (torch.rand(maskable.shape, generator=generator) < 0.5)).flatten().nonzero().squeeze(1)
    flat = batch["input_ids"].flatten().clone()
    masked = MaskedTokens(flat.index_fill(0, positions, 4).view_as(maskable), positions, flat[positions])
    shift = torch.randint(1, size, (2, size), generator=generator)
    negatives = tuple((torch.arange(size) + row) % size for row in shift)

    losses, _, _ = objective(**batch, masked=masked, alpha=0.3, negatives=negatives)
    plain = plain_losses(objective, batch, masked, 0.3, negatives)
    torch.testing.assert_close(torch.stack([losses.contrastive, losses.itm, losses.mlm]), plain, rtol=2e-5, atol=2e-5)

    parameters = {n: p for n, p in objective.model.named_parameters() if not n.endswith(("key.bias", "qkv.bias"))}
    fast_gradients = torch.autograd.grad(losses.total, list(parameters.values()), allow_unused=True)
    plain_gradients = torch.autograd.grad(plain.sum(), list(parameters.values()), allow_unused=True)
    largest: dict[str, float] = {}  # gradient of each layer: attention over a single token has none but rounding
    for name, b in zip(parameters, plain_gradients, strict=True):
        if b is not None:
            largest[layer_of(name)] = max(largest.get(layer_of(name), 0.0), b.abs().max().item())
    for name, a, b in zip(parameters, fast_gradients, plain_gradients, strict=True):
        a, b = (torch.zeros(()) if gradient is None else gradient for gradient in (a, b))
        assert (a - b).abs().max() <= 2e-4 * b.abs().max() + 1e-6 * largest.get(layer_of(name), 0.0), name


def nothing_masked(batch: dict[str, Tensor]) -> MaskedTokens:
    return MaskedTokens(batch["input_ids"], torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


def test_a_batch_of_one_has_finite_losses_and_gradients() -> None:
    objective = build(5)
    batch = make_batch(1, [4], seed=0)
    losses, image_feat, _ = objective(**batch, masked=nothing_masked(batch), alpha=0.4)
    losses.total.backward()
    assert torch.isfinite(losses.total) and losses.mlm == 0 and losses.lmi_text == 0
    image = objective.model.encode_image(batch["images"])
    text = objective.model.encode_text(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(losses.itm, F.cross_entropy(objective.model.match(image, text), torch.tensor([1])))
    assert image_feat.shape == (1, 16)
    gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_two_pairs_are_the_negatives_of_each_other() -> None:
    objective, batch = build(5), make_batch(2, [4, 3], seed=0)
    inputs = {**batch, "masked": nothing_masked(batch), "alpha": 0.4}
    drawn, given = objective(**inputs)[0], objective(**inputs, negatives=(torch.tensor([1, 0]),) * 2)[0]
    assert torch.equal(drawn.itm, given.itm)


def test_the_log_gets_numbers_without_their_graph() -> None:
    objective, batch = build(5), make_batch(3, [4, 3, 5], seed=0)
    masked = MaskedTokens(batch["input_ids"], torch.tensor([1]), torch.tensor([7]))
    named = objective(**batch, masked=masked, alpha=0.4)[0].named()
    assert not any(value.requires_grad for value in named.values())
    parts = ["cma_i2t", "cma_t2i", "imc_image", "imc_text", "lmi_image", "lmi_text"]
    assert list(named) == ["loss", "contrastive", *parts, "itm", "mlm"]
    assert named["contrastive"].item() == pytest.approx(sum(named[part].item() for part in parts) / 6)
    assert named["loss"].item() == pytest.approx(sum(named[part].item() for part in ("contrastive", "itm", "mlm")))


def check_contrast_is_exact_under_autocast(objective: PretrainObjective, inputs: dict[str, Any]) -> None:
    """Encoders round; the similarities of their features do not, nor what is computed from them."""
    student, teacher = objective.model, objective.teacher.model
    with torch.autocast("cpu", torch.bfloat16):
        losses, image_feat_m, _ = objective(**inputs)
        image, image_m = student.encode_image(inputs["images"]), teacher.encode_image(inputs["images_aug"])
        text_m = teacher.encode_text(inputs["input_ids"], inputs["attention_mask"])
    sims = image.image_feat @ torch.cat([image_feat_m.T, objective.queue.image_queue], dim=1) / student.temp
    torch.testing.assert_close(losses.imc_image, F.cross_entropy(sims, torch.arange(len(sims))), rtol=1e-5, atol=1e-5)
    local = objective.local_features(image_m, text_m)[0]
    exact = lmi_loss(image.image_feat, local, student.temp)
    torch.testing.assert_close(losses.lmi_image, exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_contrast_is_exact_under_autocast() -> None:
    batch = make_batch(3, [4, 3, 5], seed=0)
    check_contrast_is_exact_under_autocast(build(5), {**batch, "masked": nothing_masked(batch), "alpha": 0.4})


def test_forward_changes_nothing() -> None:
    objective = build(5)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    batch = make_batch(4, [3, 4, 2, 4], seed=0)
    masked = MaskedTokens(batch["input_ids"], torch.tensor([1]), torch.tensor([7]))
    objective(**batch, masked=masked, alpha=0.4)[0].total.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
