"""Parts of a model that nothing has trained: whoever needs one refuses the model.

Published checkpoints of VQA, visual entailment and NLVR2 hold no projections and no matching head. In a model made
from one these are random, and `untrained` in its `config.json` names them, until a training gives them a gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from tcl.errors import UsageError

if TYPE_CHECKING:
    from tcl.models.tcl import TCL

PARTS = {
    "vision_proj": "image projection (vision_proj)",
    "text_proj": "text projection (text_proj)",
    "itm_head": "matching head (itm_head)",
    "text_encoder.cls": "MLM head (text_encoder.cls)",
}
"""What a checkpoint may lack, or a task leave as it is, and what people call it."""

Use = Literal["vectors", "match scores"]

NEEDS: dict[Use, tuple[str, ...]] = {"vectors": ("vision_proj", "text_proj"), "match scores": ("itm_head",)}


def parts_of(keys: Iterable[str]) -> tuple[str, ...]:
    """Those of `PARTS` that keys of a model belong to."""
    names = list(keys)
    return tuple(part for part in PARTS if any(name.startswith(f"{part}.") for name in names))


def read_untrained(config: Mapping[str, object]) -> tuple[str, ...]:
    """What the `config.json` of a model folder names; nothing, where an older version wrote it."""
    named = config.get("untrained")
    return tuple(part for part in PARTS if isinstance(named, list) and part in named)


def left_untrained(model: TCL) -> tuple[str, ...]:
    """Which of its untrained parts stay so in a training: those without gradient."""
    return tuple(
        part
        for part in model.untrained
        if not any(parameter.requires_grad for parameter in model.get_submodule(part).parameters())
    )


def lacking(untrained: Collection[str], *uses: Use) -> list[str]:
    """What of its untrained parts a model would have to have learned for these uses, in people's words."""
    return [PARTS[part] for use in uses for part in NEEDS[use] if part in untrained]


def check_trained(untrained: Collection[str], place: str, *uses: Use) -> None:
    """Refuse a model or a bundle that would give noise.

    Args:
        untrained: its untrained parts.
        place: where it is, for the message.
        uses: what is wanted of it.

    Raises:
        UsageError: naming the parts that it lacks.
    """
    for use in uses:
        if parts := lacking(untrained, use):
            raise UsageError(
                f"{place} gives no {use}: it has no trained {' or '.join(parts)}",
                hint="take a model of pre-training or retrieval, or make one of this model: "
                "tcl finetune retrieval --model MODEL --data PAIRS",
            )
