"""The momentum teacher and the queue of its features (section 3.2 of the paper)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tcl.models.tcl import TCL


class MomentumTeacher(nn.Module):
    """An exponential moving average of a model's encoders and projections; it is never trained.

    It follows the model's training mode: the published teacher has dropout while training, which is what makes a text
    and its twin differ (IMC).
    """

    def __init__(self, model: TCL) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        # These two belong to the trained model alone.
        del self.model.itm_head, self.model.temp

    @torch.no_grad()
    def update(self, model: TCL, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * model`, in place. The step calls it before its forward."""
        online = dict(model.named_parameters())
        names, averages = zip(*self.model.named_parameters(), strict=True)
        torch._foreach_lerp_(list(averages), [online[name] for name in names], 1 - momentum)


class FeatureQueue(nn.Module):
    """The newest teacher features of images and texts, as columns of a ring; any batch size fits any queue size."""

    image_queue: Tensor  # [E, Q]
    text_queue: Tensor  # [E, Q]
    queue_ptr: Tensor  # [1]

    def __init__(self, embed_dim: int, queue_size: int) -> None:
        super().__init__()
        for name in ("image_queue", "text_queue"):
            features = torch.randn(embed_dim, queue_size)
            self.register_buffer(name, F.normalize(features, dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def places(self, count: int) -> tuple[slice, Tensor]:
        """Which of so many new features are kept, the newest, and the columns that they are put into."""
        size = self.image_queue.shape[1]
        skipped = max(count - size, 0)
        columns = (self.queue_ptr + torch.arange(skipped, count, device=self.queue_ptr.device)) % size
        return slice(skipped, None), columns

    @torch.no_grad()
    def enqueue(self, image_feat: Tensor, text_feat: Tensor) -> None:
        """Put features [B, E] in place of the oldest; of a batch larger than the queue the last Q stay."""
        newest, columns = self.places(len(image_feat))
        self.image_queue.index_copy_(1, columns, image_feat[newest].T.to(self.image_queue.dtype))
        self.text_queue.index_copy_(1, columns, text_feat[newest].T.to(self.text_queue.dtype))
        self.queue_ptr.copy_((self.queue_ptr + len(image_feat)) % self.image_queue.shape[1])
