"""The losses of TCL as pure functions: tensors in, a scalar out, float32 inside.

Letters: B samples, Q queued features, E feature width, L local features of a sample, V vocabulary, M masked positions.
Names are those of the paper (arXiv 2202.10401, section 3); `docs/method.md` puts each formula beside its function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    of one anchor are the same for each of its positives, so a single log-sum-exp serves them all and nothing larger
    than [B, B * L] exists. Samples without any local feature (a caption that is [CLS] alone) are left out of the mean.

    Args:
        global_feat: anchors [B, E].
        local_feat: local features [B, L, E]; they carry no gradient.
        temperature: scalar.
        mask: bool [B, L], True at real local features; all are when omitted.
    """
    size, length = local_feat.shape[:2]
    if length == 0 or size == 1:  # no local features at all, or nothing to contrast them with
        return global_feat.sum() * 0.0
    if mask is None:
        mask = local_feat.new_ones(size, length, dtype=torch.bool)
    logits = (global_feat.float() @ local_feat.float().flatten(0, 1).T / temperature).unflatten(1, (size, length))
    positive = logits.diagonal().T  # [B, L]: anchor i against its own local features

    own = torch.eye(size, dtype=torch.bool, device=logits.device)[:, :, None]
    # The smallest finite value, not -inf: a row without any negative then has a finite gradient too.
    negatives = logits.masked_fill(own | ~mask, torch.finfo(logits.dtype).min).flatten(1).logsumexp(dim=1, keepdim=True)

    loss = (torch.logaddexp(positive, negatives) - positive).masked_fill(~mask, 0.0)
    counts = mask.sum(dim=1)
    return (loss.sum(dim=1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


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
