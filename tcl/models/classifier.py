"""Classification of a text with its image (visual entailment) or with its two images (NLVR2)."""

from __future__ import annotations

from torch import Tensor, nn

from tcl.models.attention import KeyValue
from tcl.models.heads import HeadConfig
from tcl.models.nlvr import double_fusion_layers
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL


class Classifier(TaskModel):
    """TCL with `cls_head` over the fused [CLS] state.

    The head of a model with the same task and classes is kept.
    """

    cls_head: nn.Sequential

    def __init__(self, base: TCL, head: HeadConfig) -> None:
        if head.task == "nlvr2":
            double_fusion_layers(base.text_encoder.bert)
        super().__init__(base, head)
        if isinstance(base, Classifier) and base.head == head:
            self.cls_head = base.cls_head
        else:
            width = self.text_proj.in_features
            layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(head.labels))
            self.cls_head = nn.Sequential(*layers).to(self.device)

    def classify(
        self, images: list[KeyValue], input_ids: Tensor, attention_mask: Tensor, image_of_text: Tensor | None = None
    ) -> Tensor:
        """Logits [R, K] of the classes.

        Args:
            images: of `image_key_values`.
            input_ids: int64 [R, S].
            attention_mask: bool [R, S].
            image_of_text: see `fuse_images`.
        """
        text = self.encode_text(input_ids, attention_mask)
        return self.cls_head(self.fuse_images(images, text, image_of_text)[:, 0])
