"""What a file of weights is, and where each of its tensors belongs in a TCL model.

A file is recognised by its keys. Each key either has a place in the model, perhaps under another name, or is left out
for a reason that can be told. For fine-tuned checkpoints of the published code this includes the task.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from tcl.data.labels.classes import ASSIGNMENT, ENTAILMENT, NLVR2
from tcl.errors import UsageError
from tcl.models.heads import HeadConfig

if TYPE_CHECKING:
    from torch import Tensor

# Of a published checkpoint these are not the model.
_BESIDE_THE_MODEL = (
    (r"\w+_m\.", "the momentum teacher; training starts one as a copy of the model"),
    (r"(image|text|idx)_queue$|queue_ptr$", "a feature queue; training fills its own"),
    (r".*\.position_ids$", "a constant"),
    (r".*\bcls\.predictions\.decoder\.", "a copy of tied weights"),
    (r"combine_\w+\.", "a projection that the published model does not use"),
)
_OF_ANOTHER_TASK = (
    (r"cls_head\.", "the classification head of another task"),
    (r"text_decoder\.", "the answer decoder of VQA"),
    (r"ta_head\.", "the text-assignment head"),
)
_OF_BERT = (
    (r"pooler\.", "the pooler, which TCL has not"),
    (r"cls\.seq_relationship\.", "the next-sentence head, which TCL has not"),
    (r"(classifier|qa_outputs)\.", "the head of another task"),
)
_OF_VIT = ((r"(head|head_dist|fc|fc_norm|pre_logits)\.", "the classification head, which TCL has not"),)

NOT_THE_MODEL = re.compile("|".join(f"(?:{pattern})" for pattern, _ in _BESIDE_THE_MODEL))
TWIN_LAYER = "the layer of the second image; that of the first is taken"
OUTSIDE = "no part of a TCL model"

PARTS = ("visual_encoder", "text_encoder", "vision_proj", "text_proj", "itm_head", "temp")
_MLM_HEAD = r"text_encoder\.cls\."
_PROJECTIONS = r"vision_proj\.|text_proj\."
_LAYER = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(crossattention\.)?")

Kind = Literal["model", "pre-training", "retrieval", "VQA", "entailment", "text assignment", "NLVR2", "BERT", "ViT"]

# What a file of each kind does not hold; such parts of a model keep their fresh values.
_LACKS: dict[Kind, str] = {
    "model": "$.",
    "pre-training": "$.",
    "retrieval": _MLM_HEAD,
    "VQA": rf"{_MLM_HEAD}|{_PROJECTIONS}|itm_head\.|temp$",
    "entailment": rf"{_MLM_HEAD}|{_PROJECTIONS}|itm_head\.|temp$",
    "text assignment": rf"{_MLM_HEAD}|itm_head\.",
    "NLVR2": rf"{_MLM_HEAD}|{_PROJECTIONS}|itm_head\.|temp$",
    "BERT": r"(?!text_encoder\.)|.*\.crossattention\.",
    "ViT": r"(?!visual_encoder\.)",
}


class Place(NamedTuple):
    """Where a key belongs: the model's name of it, or why it is left out (both None: nobody knows it)."""

    target: str | None
    why: str | None = None


@dataclass(frozen=True)
class Layout:
    """How a file names its tensors.

    Attributes:
        kind: what wrote the file: this package, the published code for one of its tasks, or a library of encoders.
        bare: the text encoder has no MLM head, so its names lack `bert.`.
        first_pair: with two images per sample, fusion layers come in pairs from this layer on.
        whole: the model has the head of the file's task, and the file the model's names.
    """

    kind: Kind
    bare: bool = False
    first_pair: int | None = None
    whole: bool = False

    @property
    def published(self) -> bool:
        """Written by the published code."""
        return self.kind not in ("model", "BERT", "ViT")

    def lacks(self, target: str, keys: Collection[str]) -> bool:
        """Whether a file of this kind, with these keys, has nothing for a key of the model, and need not have it."""
        if self.kind == "BERT" and re.match(_MLM_HEAD, target):
            return not any(re.match(r"cls\.predictions\.(?!decoder)", key) for key in keys)
        return re.match(_LACKS[self.kind], target) is not None

    def place(self, key: str) -> Place:
        """Where a key of the file belongs."""
        if self.whole:
            return Place(key)
        if self.kind == "BERT":
            return _place_bert(key)
        if self.kind == "ViT":
            return _reason(key, _OF_VIT) or Place(f"visual_encoder.{key}")
        return _reason(key, (*_BESIDE_THE_MODEL, *_OF_ANOTHER_TASK)) or self._place_part(key)

    def _place_part(self, key: str) -> Place:
        if key.partition(".")[0] not in PARTS:
            return Place(None, OUTSIDE)
        layer = _LAYER.match(key)
        if layer and self.first_pair is not None and int(layer[1]) >= self.first_pair:
            pair, second = divmod(int(layer[1]) - self.first_pair, 2)
            if second:
                return Place(None, TWIN_LAYER)
            key = key.replace(f".layer.{layer[1]}.", f".layer.{self.first_pair + pair}.", 1)
        if self.bare and key.startswith(("text_encoder.embeddings.", "text_encoder.encoder.")):
            key = key.replace("text_encoder.", "text_encoder.bert.", 1)
        return Place(key)


def recognise(keys: Collection[str], paired: bool = False) -> Layout | None:
    """What a file with these keys is, or None.

    Args:
        keys: of the file.
        paired: neighbouring fusion layers share weights, which only the layers of NLVR2 do.
    """
    if any(re.fullmatch(r"(bert\.)?embeddings\.word_embeddings\.weight", key) for key in keys):
        return Layout("BERT")
    if "patch_embed.proj.weight" in keys and "pos_embed" in keys:
        return Layout("ViT")
    if "visual_encoder.pos_embed" not in keys:
        return None
    if any(key.startswith("text_encoder.bert.") for key in keys):
        return Layout("pre-training")
    components = {key.partition(".")[0] for key in keys}
    first_pair = first_fusion_layer(keys) if paired else None
    if "ta_head" in components:
        return Layout("text assignment", bare=True, first_pair=first_pair)
    if "text_decoder" in components:
        return Layout("VQA", bare=True)
    if "cls_head" in components:
        return Layout("NLVR2" if paired else "entailment", bare=True, first_pair=first_pair)
    return Layout("retrieval", bare=True)


def first_fusion_layer(keys: Collection[str]) -> int | None:
    """The first layer with cross-attention."""
    layers = (_LAYER.match(key) for key in keys)
    return min((int(match[1]) for match in layers if match and match[2]), default=None)


def tied_to(key: str) -> str | None:
    """Of a published key that repeats another tensor under a second name: that tensor's key."""
    encoder, found, which = key.partition(".cls.predictions.decoder.")
    if not found:
        return None
    return (
        f"{encoder}.bert.embeddings.word_embeddings.weight" if which == "weight" else f"{encoder}.cls.predictions.bias"
    )


def _place_bert(key: str) -> Place:
    name = key.removeprefix("bert.")
    reason = _reason(f"text.{name}", _BESIDE_THE_MODEL) or _reason(name, _OF_BERT)
    if reason:
        return reason
    # BERT's first release called weight and bias of its norms gamma and beta, and its files are still around.
    name = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
    if name.startswith("cls.predictions."):
        return Place(f"text_encoder.{name}")
    if name.startswith(("embeddings.", "encoder.")):
        return Place(f"text_encoder.bert.{name}")
    return Place(None, OUTSIDE)


def _reason(key: str, reasons: Collection[tuple[str, str]]) -> Place | None:
    return next((Place(None, why) for pattern, why in reasons if re.match(pattern, key)), None)


def twin_layers(state: Mapping[str, Tensor]) -> bool:
    """Do the fusion layers come in pairs with the same keys, as those of NLVR2 do?

    Two that were trained apart never agree exactly.
    """
    keys = _key_weights(state)
    layers = sorted(keys)
    pairs = list(zip(layers[::2], layers[1::2], strict=False))
    return len(layers) % 2 == 0 and bool(pairs) and all(keys[a].equal(keys[b]) for a, b in pairs)


def layout_of(state: Mapping[str, Tensor]) -> Layout | None:
    """What a file of these tensors is."""
    return recognise(state, paired=twin_layers(state))


_PUBLISHED_LAYER = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.*)")

_SHARED = re.compile(r"crossattention\.self\.(key|value)\.(weight|bias)")

SHARED_LAYER = "the same as in the layer before it, which two images share"


def published_head(state: Mapping[str, Tensor], answers: list[str] | None = None) -> HeadConfig | None:
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
    task, known = ("nlvr2", NLVR2) if twin_layers(state) else ("entailment", ENTAILMENT)
    labels = list(known) if count == len(known) else [f"class {number}" for number in range(count)]
    return HeadConfig.model_validate({"task": task, "labels": labels})


def task_places(state: Mapping[str, Tensor]) -> dict[str, Place]:
    """Where each key of a fine-tuned checkpoint belongs in the model that `attach_head` makes, or why it is left out.

    It has none for the parts in `NOT_TRAINED`: the published code drops them.
    """
    first = min(_key_weights(state), default=0) if twin_layers(state) else None
    places = {}
    for name in state:
        layer = _PUBLISHED_LAYER.fullmatch(name)
        second = layer is not None and first is not None and int(layer[1]) >= first and (int(layer[1]) - first) % 2
        if NOT_THE_MODEL.match(name):
            places[name] = Place(None, Layout("retrieval").place(name).why)
        elif layer and second and _SHARED.fullmatch(layer[2]):
            places[name] = Place(None, SHARED_LAYER)
        else:
            places[name] = Place(re.sub(r"^text_encoder\.(?!bert\.|cls\.)", "text_encoder.bert.", name))
    return places


def task_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a fine-tuned checkpoint for the model that `attach_head` makes; teacher and copies are dropped."""
    placed = ((place.target, state[name]) for name, place in task_places(state).items())
    return {target: tensor for target, tensor in placed if target is not None}


def _key_weights(state: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """By fusion layer."""
    found = ((_PUBLISHED_LAYER.fullmatch(name), tensor) for name, tensor in state.items())
    return {int(layer[1]): tensor for layer, tensor in found if layer and layer[2] == "crossattention.self.key.weight"}
