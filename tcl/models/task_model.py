"""What the models of all tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from torch import Tensor

from tcl.errors import UsageError
from tcl.models.attention import KeyValue, Tokens
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL, TextOutput

NOT_TRAINED = ("vision_proj", "text_proj", "itm_head", "temp", "text_encoder.cls")
"""Parts of TCL that no task but retrieval uses."""


class TaskModel(TCL):
    """A TCL model with a head. It still embeds, matches and exports: its encoders have their names and places.

    The published code drops projections and matching head when it fine-tunes. Here they stay as they were, while the
    encoders below them move on, so vectors of a model that was fine-tuned for a task are less good than before.

    Attributes:
        head: the task and its classes.
    """

    head: HeadConfig

    def __init__(self, base: TCL, head: HeadConfig) -> None:
        super().__init__(base.visual_encoder, base.text_encoder, base.vision_proj.out_features)
        self.vision_proj, self.text_proj = base.vision_proj, base.text_proj
        self.itm_head, self.temp = base.itm_head, base.temp
        self.config, self.untrained = base.config, base.untrained
        self.head = head
        if hasattr(base, "processor"):
            self.processor = base.processor
        if self.images_per_text != self.text_encoder.bert.images_per_text:
            raise UsageError(
                f"{head.task} reads one image with a text, and this model was made for two",
                hint="start from a model that was not fine-tuned for nlvr2",
            )
        self.to(base.device)
        self.train(base.training)

    @property
    def images_per_text(self) -> int:
        """Images that belong to one text of the task."""
        return self.head.images_per_text

    @property
    def max_positions(self) -> int:
        """Tokens of the longest text that the model has positions for."""
        return self.config.text_encoder_args.max_position_embeddings

    def freeze_unused(self) -> None:
        """Take what the task does not use out of the training: it gets no gradient."""
        for name in NOT_TRAINED:
            parent, _, last = name.rpartition(".")
            part = getattr(self.get_submodule(parent), last)
            part.requires_grad_(False)

    def fuse_images(
        self,
        images: list[KeyValue],
        text: TextOutput,
        image_of_text: Tensor | None = None,
        wanted: Tokens | None = None,
    ) -> Tensor:
        """Fused states [R, S, D] of texts with the images that belong to them, or [T, D] of the `wanted` tokens.

        Args:
            images: of `image_key_values`, computed once per image, however many texts it has.
            text: R texts.
            image_of_text: int64 [R, images per text]; without it, text r has image r and, of two, image R + r.
            wanted: see `Bert.fuse`.
        """
        places: Sequence[Tensor | slice]
        if image_of_text is None:
            size = len(text.text_embeds)
            places = [slice(0, size), slice(size, 2 * size)][: self.images_per_text]
        else:
            places = image_of_text.unbind(dim=1)
        chosen = (map(KeyValue.select, images, repeat(rows)) for rows in places)  # when its layer comes, and no earlier
        return self.text_encoder.bert.fuse(text.text_embeds, text.attention_mask, *chosen, wanted=wanted)
