"""Starting a model from weights that exist, with an account of every key."""

from __future__ import annotations

import json

from tcl.data.tokenizer import CaptionTokenizer
from tcl.errors import CheckpointError, ConfigError, UsageError
from tcl.models.tcl import TCL
from tcl.models.vision import resize_position_embeddings
from tcl.weights.keyreport import POSITIONS, KeyReport
from tcl.weights.sources import Weights, attention_heads, open_weights, timm_weights


def initialise(model: TCL, source: str | Weights, *, tokenizer: CaptionTokenizer | None = None) -> KeyReport:
    """Load starting weights into a model, position embeddings resampled to its grid, every key accounted for.

    Args:
        model: of the sizes that training wants; what the source lacks keeps its values.
        source: see `open_weights`.
        tokenizer: the vocabulary of training; the source's own, where known, has to agree with it.

    Raises:
        UsageError: there is no such source.
        ConfigError: the vocabulary or the attention heads differ.
        CheckpointError: it is damaged, lacks something needed, or does not fit; the message lists the keys.
    """
    weights = open_weights(source) if isinstance(source, str) else source
    report = _load(model, weights)
    problem = report.problem(weights.lacks)
    if problem:
        raise CheckpointError(
            f"{weights.place}: its weights do not fit the recipe: {problem}",
            hint="make the sizes and the vocabulary in the recipe's `model` section agree with it",
        )
    _check_agreement(model, weights, tokenizer)
    return report


def load_pretrained_encoders(model: TCL, tokenizer: CaptionTokenizer | None = None) -> KeyReport:
    """Start from the encoders that `model.config` names: timm's ViT weights and BERT's, as published pre-training does.

    Cross-attention and the projections have no pretrained weights and keep their random ones.

    Args:
        model: of the sizes that training wants.
        tokenizer: the vocabulary of training; that of the text encoder, where known, has to agree with it.

    Raises:
        UsageError: weights cannot be fetched or found.
        ConfigError: they do not fit the sizes in the recipe.
    """
    config = model.config
    reports = []
    for key, name in (("image_encoder", config.image_encoder), ("text_encoder", config.text_encoder)):
        try:
            weights = timm_weights(name, config.image_encoder_args) if key == "image_encoder" else open_weights(name)
        except (UsageError, CheckpointError) as error:
            raise UsageError(
                f"model.{key}: the weights of {name!r} cannot be loaded: {error.message}",
                hint="with a network they come from the hub; without pretrained weights: model.pretrained=false",
            ) from error
        if key == "text_encoder" and weights.layout.kind != "BERT":
            raise ConfigError(f"model.{key}: {name} holds no BERT", hint=f"to start from it whole: model.init={name}")
        report = _load(model, weights)
        problem = report.problem(weights.lacks)
        if problem:
            raise ConfigError(
                f"model.{key} {name}: its weights do not fit the recipe: {problem}",
                hint="make the sizes and the vocabulary agree, or set model.pretrained=false",
            )
        _check_agreement(model, weights, tokenizer)
        reports.append(report)
    return reports[0].and_then(reports[1])


def _load(model: TCL, weights: Weights) -> KeyReport:
    """Load what fits and say what became of each key; nothing is loaded when something does not fit."""
    own = model.state_dict()
    report = weights.report(model)
    grid = _grid_of(weights)
    if grid and POSITIONS in report.wrong_shape and weights.state[POSITIONS].shape[2] == own[POSITIONS].shape[2]:
        report.resized[POSITIONS] = report.wrong_shape.pop(POSITIONS)  # the grid is no square, but it is known
    if not report.wrong_shape and not report.unknown:
        state = {name: weights.state[source] for name, source in report.sources().items()}
        if POSITIONS in state:
            grid_size = model.visual_encoder.grid_size
            state[POSITIONS] = resize_position_embeddings(state[POSITIONS], grid_size, grid)
        model.load_state_dict(state, strict=False)
    return report


def _grid_of(weights: Weights) -> tuple[int, int] | None:
    """Patches (rows, columns) of weights whose sizes are written down."""
    if weights.config is None:
        return None
    height, width = weights.config.image_shape
    patch = weights.state["visual_encoder.patch_embed.proj.weight"]
    return height // patch.shape[-2], width // patch.shape[-1]


def _check_agreement(model: TCL, weights: Weights, tokenizer: CaptionTokenizer | None) -> None:
    """What shapes do not show: with other heads or other words the weights would load, and mean something else."""
    settings = ("model.image_encoder_args.num_heads", "model.text_encoder_args.num_attention_heads")
    for setting, theirs, ours in zip(settings, weights.heads, attention_heads(model), strict=True):
        if theirs is not None and ours is not None and theirs != ours:
            raise ConfigError(
                f"{weights.place}: trained with {theirs} attention heads, the recipe has {ours}",
                hint=f"set {setting}={theirs}",
            )
    known = weights.tokenizer
    if tokenizer is not None and known is not None and _words(known) != _words(tokenizer):
        same = ", but not the same" if known.vocab_size == tokenizer.vocab_size else ""
        raise ConfigError(
            f"{weights.place}: trained with another vocabulary: {known.vocab_size} words there, "
            f"{tokenizer.vocab_size} here{same}",
            hint="set model.tokenizer to the vocabulary that belongs to these weights",
        )


def _words(tokenizer: CaptionTokenizer) -> object:
    return json.loads(tokenizer.to_json())["model"].get("vocab")
