"""The losses of TCL as pure functions: tensors in, a scalar out, float32 inside.

Letters: B samples, Q queued features, E feature width, L local features of a sample, V vocabulary, M masked positions.
Names are those of the paper (arXiv 2202.10401, section 3); `docs/method.md` puts each formula beside its function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 22
"""Similarities that `lmi_loss` holds at a time: 16 MB, which the usual batch of one GPU stays below."""


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of `-sum(targets * log_softmax(logits))`.

    Args:
        logits: [B, K].
        targets: [B, K], rows sum to 1.
    """
    return -(logits.float().log_softmax(dim=-1) * targets).sum(dim=-1).mean()


def distilled_targets(teacher_logits: Tensor, positives: Tensor, alpha: float) -> Tensor:
    """`alpha * softmax(teacher) + (1 - alpha) * positives`, without gradient. All [B, K]."""
    return torch.lerp(positives, teacher_logits.detach().float().softmax(dim=-1), alpha)


def cma_loss(sim: Tensor, sim_m: Tensor, positives: Tensor, alpha: float) -> Tensor:
    """Cross-modal alignment, one direction: image to text, or text to image, with distilled targets.

    Args:
        sim: similarities of this model to batch and queue, divided by the temperature [B, B + Q].
        sim_m: the same by the momentum teacher [B, B + Q].
        positives: 1 at the sample's own column, rows sum to 1 [B, B + Q].
        alpha: weight of the teacher's distribution.
    """
    return soft_cross_entropy(sim, distilled_targets(sim_m, positives, alpha))


def imc_loss(sim: Tensor, positives: Tensor) -> Tensor:
    """Intra-modal contrast: a view against the other view, or a text against its dropout twin; hard targets.

    Args:
        sim: similarities within one modality, divided by the temperature [B, B + Q].
        positives: as in `cma_loss`.
    """
    return soft_cross_entropy(sim, positives)


def lmi_loss(global_feat: Tensor, local_feat: Tensor, temperature: Tensor, mask: Tensor | None = None) -> Tensor:
    """Local mutual information: a global feature against the local features of its own sample.

    A sample's local feature is the positive, all local features of the other samples are the negatives. The negatives
    of one anchor are the same for each of its positives, so a single log-sum-exp serves them all, computed for some
    anchors at a time. Samples without any local feature (a caption that is [CLS] alone) are left out of the mean.

    Args:
        global_feat: anchors [B, E].
        local_feat: local features [B, L, E]; they carry no gradient.
        temperature: scalar.
        mask: bool [B, L], True at real local features; all are when omitted.
    """
    size, length = local_feat.shape[:2]
    if length == 0:  # captions of [CLS] alone
        return global_feat.sum() * 0.0
    if mask is None:
        mask = local_feat.new_ones(size, length, dtype=torch.bool)
    anchors, local_feat = global_feat.float() / temperature, local_feat.detach().float()
    positive = (local_feat @ anchors[:, :, None]).squeeze(2)  # [B, L]: anchor i against its own local features
    negatives = _OthersLogSumExp.apply(anchors, local_feat, mask)[:, None]

    loss = (torch.logaddexp(positive, negatives) - positive).masked_fill(~mask, 0.0)
    counts = mask.sum(dim=1)
    return (loss.sum(dim=1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


class _OthersLogSumExp(torch.autograd.Function):
    """For each anchor, the log-sum-exp over the local features of all other samples [B].

    The similarities [B, B * L] are computed for a block of anchors at a time, and again in the backward pass, so that
    memory grows with B * L alone.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, local_feat: Tensor, mask: Tensor) -> Tensor:
        blocks = _similarities_to_others(anchors, local_feat, mask)
        result = torch.cat([logits.logsumexp(dim=1) for _, logits in blocks])
        ctx.save_for_backward(anchors, local_feat, mask, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        anchors, local_feat, mask, result = ctx.saved_tensors
        local_flat = local_feat.flatten(0, 1)
        parts = []
        for rows, logits in _similarities_to_others(anchors, local_feat, mask):
            shares = logits.sub_(result[rows, None]).exp_().mul_(gradient[rows, None])
            parts.append(shares @ local_flat)
        return torch.cat(parts), None, None


def _similarities_to_others(anchors: Tensor, local_feat: Tensor, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of anchors and their logits [rows, B * L], smallest at padding and at an anchor's own local features."""
    size, length = mask.shape
    # Not -inf: a row without any negative then has a finite gradient too.
    hidden = torch.finfo(anchors.dtype).min
    rows_at_once = max(_LOGITS_AT_ONCE // (size * length), 1)
    for start in range(0, size, rows_at_once):
        rows = slice(start, min(start + rows_at_once, size))
        logits = anchors[rows] @ local_feat.flatten(0, 1).T
        logits.masked_fill_(~mask.flatten(), hidden)
        own = logits.unflatten(1, (size, length)).diagonal(offset=start)  # a view [L, rows]
        own.fill_(hidden)
        yield rows, logits


def itm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Image-text matching: cross entropy over no match / match. `logits` [R, 2], `labels` [R] in {0, 1}."""
    return F.cross_entropy(logits.float(), labels)


def mlm_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Masked language modelling, distilled; zero when nothing is masked.

    Args:
        logits: at the masked positions only [M, V].
        teacher_logits: the teacher's there [M, V].
        labels: the words that were there [M].
        alpha: weight of the teacher's distribution.
    """
    log_p = logits.float().log_softmax(dim=-1)
    hard = F.nll_loss(log_p, labels, reduction="sum")
    soft = -(log_p * teacher_logits.detach().float().softmax(dim=-1)).sum()
    return torch.lerp(hard, soft, alpha) / max(len(labels), 1)
