"""Fine-tuned checkpoints of the published code: which task they are of, and their weights by our names."""

from __future__ import annotations

import re

from torch import Tensor

from tcl.data.labels.classes import ASSIGNMENT, ENTAILMENT, NLVR2
from tcl.errors import UsageError
from tcl.models.heads import HeadConfig
from tcl.weights.layouts import NOT_THE_MODEL, Layout, Place

_LAYER = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.*)")
_SHARED = re.compile(r"crossattention\.self\.(key|value)\.(weight|bias)")

SHARED_LAYER = "the same as in the layer before it, which two images share"


def published_head(state: dict[str, Tensor], answers: list[str] | None = None) -> HeadConfig | None:
    """The task that a checkpoint was fine-tuned for, by its keys; None for pre-training and retrieval.

    Args:
        state: published names, the momentum copies may be among them.
        answers: what a vqa model chooses from, which its checkpoint does not hold.

    Raises:
        UsageError: it is of vqa, and there are no answers.
    """
    if "text_decoder.cls.predictions.bias" in state:
        if not answers:
            raise UsageError(
                "a vqa checkpoint holds no answers to choose from", hint="put its answer_list.json beside it"
            )
        layers = {name.split(".")[4] for name in state if name.startswith("text_decoder.bert.encoder.layer.")}
        return HeadConfig(task="vqa", labels=answers, decoder_layers=len(layers))
    if "ta_head.weight" in state:
        return HeadConfig(task="text_assignment", labels=list(ASSIGNMENT))
    if "cls_head.2.weight" not in state:
        return None
    count = len(state["cls_head.2.weight"])
    task, known = ("nlvr2", NLVR2) if is_doubled(state) else ("entailment", ENTAILMENT)
    labels = list(known) if count == len(known) else [f"class {number}" for number in range(count)]
    return HeadConfig.model_validate({"task": task, "labels": labels})


def task_places(state: dict[str, Tensor]) -> dict[str, Place]:
    """Where each key of a fine-tuned checkpoint belongs in the model that `attach_head` makes, or why it is left out.

    It has none for the parts in `NOT_TRAINED`: the published code drops them.
    """
    first = min(_key_weights(state), default=0) if is_doubled(state) else None
    places = {}
    for name in state:
        layer = _LAYER.fullmatch(name)
        second = layer is not None and first is not None and int(layer[1]) >= first and (int(layer[1]) - first) % 2
        if NOT_THE_MODEL.match(name):
            places[name] = Place(None, Layout("retrieval").place(name).why)
        elif layer and second and _SHARED.fullmatch(layer[2]):
            places[name] = Place(None, SHARED_LAYER)
        else:
            places[name] = Place(re.sub(r"^text_encoder\.(?!bert\.|cls\.)", "text_encoder.bert.", name))
    return places


def task_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a fine-tuned checkpoint for the model that `attach_head` makes; teacher and copies are dropped."""
    placed = ((place.target, state[name]) for name, place in task_places(state).items())
    return {target: tensor for target, tensor in placed if target is not None}


def is_doubled(state: dict[str, Tensor]) -> bool:
    """Do the fusion layers come in pairs with the same keys? Two that were trained apart never agree exactly."""
    keys = _key_weights(state)
    layers = sorted(keys)
    pairs = list(zip(layers[::2], layers[1::2], strict=False))
    return len(layers) % 2 == 0 and bool(pairs) and all(keys[a].equal(keys[b]) for a, b in pairs)


def _key_weights(state: dict[str, Tensor]) -> dict[int, Tensor]:
    """By fusion layer."""
    found = ((_LAYER.fullmatch(name), tensor) for name, tensor in state.items())
    return {int(layer[1]): tensor for layer, tensor in found if layer and layer[2] == "crossattention.self.key.weight"}
