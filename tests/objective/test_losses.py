"""Every fast path against the plain formula written out, forward and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tcl.objective.losses import cma_loss, imc_loss, itm_loss, lmi_loss, mlm_loss, soft_cross_entropy


def plain_lmi(global_feat: Tensor, local_feat: Tensor, temperature: Tensor, mask: Tensor) -> Tensor:
    """One softmax per local feature, in Python loops."""
    per_sample = []
    for i in range(len(global_feat)):
        terms = []
        for k in range(local_feat.shape[1]):
            if not mask[i, k]:
                continue
            candidates = [global_feat[i] @ local_feat[i, k]]
            candidates += [
                global_feat[i] @ local_feat[j, n]
                for j in range(len(global_feat))
                for n in range(local_feat.shape[1])
                if j != i and mask[j, n]
            ]
            terms.append(-(torch.stack(candidates) / temperature).log_softmax(0)[0])
        if terms:
            per_sample.append(torch.stack(terms).mean())
    return torch.stack(per_sample).mean()


def features(generator: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 9), length=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_lmi_equals_the_plain_formula(size: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    global_feat = features(generator, size, 8).requires_grad_()
    local_feat = features(generator, size, length, 8)
    temperature = torch.tensor(0.07, requires_grad=True)
    mask = torch.rand(size, length, generator=generator) < 0.7
    mask[0, 0] = mask[1, 0] = True  # other rows may well have no local feature at all

    fast = lmi_loss(global_feat, local_feat, temperature, mask)
    fast_gradients = torch.autograd.grad(fast, (global_feat, temperature))
    plain = plain_lmi(global_feat, local_feat, temperature, mask)
    plain_gradients = torch.autograd.grad(plain, (global_feat, temperature))

    torch.testing.assert_close(fast, plain, rtol=2e-5, atol=2e-5)
    for a, b in zip(fast_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 4), (3, 0)], ids=["batch of one", "captions of [CLS] alone"])
def test_lmi_without_anything_to_contrast_is_zero_with_a_gradient(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    global_feat = features(generator, shape[0], 8).requires_grad_()
    loss = lmi_loss(global_feat, features(generator, *shape, 8), torch.tensor(0.07))
    loss.backward()
    assert loss.item() == 0 and global_feat.grad is not None and not global_feat.grad.any()


def test_lmi_is_the_mean_over_samples_with_local_features() -> None:
    generator = torch.Generator().manual_seed(0)
    feat, local, temperature = features(generator, 3, 8), features(generator, 3, 2, 8), torch.tensor(0.07)
    none = torch.zeros(3, 2, dtype=torch.bool)
    assert lmi_loss(feat, local, temperature, none).item() == 0
    # A caption of [CLS] alone changes nothing for the others, and does not count.
    two = lmi_loss(feat[:2], local[:2], temperature)
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    torch.testing.assert_close(lmi_loss(feat, local, temperature, mask), two)


def test_lmi_when_only_one_caption_has_words() -> None:
    generator = torch.Generator().manual_seed(0)
    global_feat = features(generator, 3, 8).requires_grad_()
    mask = torch.tensor([[True, True], [False, False], [False, False]])
    loss = lmi_loss(global_feat, features(generator, 3, 2, 8), torch.tensor(0.07), mask)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(global_feat.grad).all()


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 9), queue=st.integers(1, 13), alpha=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_cma_is_the_distilled_cross_entropy(size: int, queue: int, alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sim, sim_m = (torch.randn(size, size + queue, generator=generator) * 5 for _ in range(2))
    positives = torch.eye(size, size + queue)
    rows = []
    for i in range(size):
        p = alpha * sim_m[i].softmax(0) + (1 - alpha) * positives[i]
        rows.append(-(p * sim[i].log_softmax(0)).sum())
    torch.testing.assert_close(cma_loss(sim, sim_m, positives, alpha), torch.stack(rows).mean(), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(imc_loss(sim, positives), F.cross_entropy(sim, torch.arange(size)), rtol=2e-5, atol=2e-5)


def test_the_teacher_gets_no_gradient() -> None:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=True)

    labels = torch.tensor([1, 4, 0])
    for loss in (
        lambda online, teacher: cma_loss(online, teacher, torch.eye(3, 5), 0.4),
        lambda online, teacher: mlm_loss(online, teacher, labels, 0.4),
        lambda online, teacher: lmi_loss(online, teacher[:, None], torch.tensor(0.07)),
    ):
        online, teacher = drawn(3, 5), drawn(3, 5)
        loss(online, teacher).backward()
        assert online.grad is not None and online.grad.any() and teacher.grad is None


def test_losses_of_bf16_are_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = ((torch.randn(4, 4, generator=generator) * 9).bfloat16() for _ in range(2))
    labels, positives = torch.tensor([1, 0, 1, 3]), torch.eye(4)
    for loss in (
        lambda x, y: cma_loss(x, y, positives, 0.4),
        lambda x, y: imc_loss(x, positives),
        lambda x, y: lmi_loss(x, y[:, None], torch.tensor(0.07)),
        lambda x, y: itm_loss(x, labels),
        lambda x, y: mlm_loss(x, y, labels, 0.4),
    ):
        assert torch.equal(loss(a, b), loss(a.float(), b.float()))


@settings(max_examples=20, deadline=None)
@given(masked=st.integers(1, 7), alpha=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_mlm_mixes_hard_and_soft_cross_entropy(masked: int, alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, logits_m = (torch.randn(masked, 11, generator=generator) * 3 for _ in range(2))
    labels = torch.randint(11, (masked,), generator=generator)
    hard = F.cross_entropy(logits, labels)
    soft = soft_cross_entropy(logits, logits_m.softmax(-1))
    expected = (1 - alpha) * hard + alpha * soft
    torch.testing.assert_close(mlm_loss(logits, logits_m, labels, alpha), expected, rtol=2e-5, atol=2e-5)


def test_mlm_with_nothing_masked_is_zero() -> None:
    logits = torch.zeros(0, 11, requires_grad=True)
    loss = mlm_loss(logits, torch.zeros(0, 11), torch.zeros(0, dtype=torch.long), 0.4)
    loss.backward()
    assert loss.item() == 0
