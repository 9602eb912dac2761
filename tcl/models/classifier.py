"""Models that classify a text with its image or images: visual entailment, NLVR2 and text assignment.

Entailment has one image per text. NLVR2 and text assignment have two, for which the fusion layers come in pairs.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from tcl.models.attention import KeyValue, Tokens
from tcl.models.bert import Bert
from tcl.models.heads import HeadConfig
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL


def double_fusion_layers(bert: Bert) -> None:
    """Put a copy behind each fusion layer, for the second image, unless it is done already.

    As published, the two of a pair share the projections of their image to keys and values, and nothing else. The copy
    has none of its own, so an image is projected once, whichever place it stands in. A text with one image passes
    through the first layer of each pair, which is what the model did before.
    """
    if bert.images_per_text == 2:
        return
    layers = list(bert.encoder.layer[: bert.fusion_layer])
    for layer in bert.fusion_layers():
        twin = copy.deepcopy(layer)
        del twin.crossattention.self.key, twin.crossattention.self.value  # type: ignore[union-attr]
        layers += [layer, twin]
    bert.encoder.layer = nn.ModuleList(layers)
    bert.images_per_text = 2


class TextAssigner(TaskModel):
    """TCL for two images with `ta_head`: does the text belong to the first image, the second, or neither?"""

    ta_head: nn.Linear

    def __init__(self, base: TCL, head: HeadConfig) -> None:
        double_fusion_layers(base.text_encoder.bert)
        super().__init__(base, head)
        if isinstance(base, TextAssigner):
            self.ta_head = base.ta_head
        else:
            self.ta_head = nn.Linear(self.text_proj.in_features, len(head.labels), device=self.device)

    def assign(
        self, images: list[KeyValue], input_ids: Tensor, attention_mask: Tensor, image_of_text: Tensor
    ) -> Tensor:
        """Logits [R, 3] of first, second, neither.

        Args:
            images: of `image_key_values`.
            input_ids: int64 [R, S].
            attention_mask: bool [R, S].
            image_of_text: the images in the two places, int64 [R, 2].
        """
        text = self.encode_text(input_ids, attention_mask)
        return self.ta_head(self.fuse_images(images, text, image_of_text, Tokens.first(text.attention_mask)))


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
        return self.cls_head(self.fuse_images(images, text, image_of_text, Tokens.first(text.attention_mask)))
