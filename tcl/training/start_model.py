"""The model a run starts with: built as the recipe says, filled with the weights it names, prepared for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tcl.config.recipe import ModelConfig, Recipe
from tcl.data.processor import Processor
from tcl.data.tokenizer import VOCABULARY_FILES, CaptionTokenizer
from tcl.errors import UsageError
from tcl.models.adapters import adapt, compile_layers
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tcl.objective.momentum import MomentumTeacher
from tcl.training.reporter import Reporter
from tcl.weights.find import CONFIG_FILE, read_json
from tcl.weights.initialize import initialise, load_pretrained_encoders
from tcl.weights.keyreport import KeyReport
from tcl.weights.layouts import Layout, task_state
from tcl.weights.model_folder import read_head
from tcl.weights.published import infer_config
from tcl.weights.sources import Weights, open_weights
from tcl.weights.untrained import PARTS, parts_of, read_untrained

TRAIN = "train"
BERT = "bert-base-uncased"  # the vocabulary of every published checkpoint

ChooseHead = Callable[[HeadConfig | None], HeadConfig]
"""The head to train, given the one that the starting weights have."""


def start_model(
    recipe: Recipe,
    captions: Iterable[str],
    checkpoint: Path | None,
    reporter: Reporter,
    choose_head: ChooseHead | None = None,
) -> TCL:
    """A model to train, with its vocabulary.

    Args:
        recipe: its sizes, where its weights come from, and which of them are trained.
        captions: of the training data, read where the vocabulary is trained on them.
        checkpoint: gives the vocabulary of a run that is resumed, whose weights are loaded later.
        reporter: hears what was loaded.
        choose_head: for a task with a head; one that fits is taken over from the weights.

    Raises:
        UsageError: weights or vocabulary cannot be found or fetched.
        ConfigError: they do not fit the sizes in the recipe.
        CheckpointError: the weights are damaged, or lack something needed.
    """
    config = recipe.model
    weights = open_weights(config.init) if config.init and not checkpoint else None
    tokenizer = CaptionTokenizer.load(checkpoint) if checkpoint else _vocabulary(config, weights, captions)
    model = TCL.from_config(config, tokenizer.vocab_size, recipe.loss.temperature)
    known = read_head(read_json(checkpoint / CONFIG_FILE)) if checkpoint else weights.head if weights else None
    head = choose_head(known) if choose_head else None
    report = None
    if weights:
        model, report = _load(model, weights, tokenizer, head)
    elif config.pretrained and not checkpoint:
        report = load_pretrained_encoders(model, tokenizer)
    if report:
        reporter.note(report.summary())
    model.untrained = _untrained(weights, report, checkpoint)
    if head:
        model = attach_head(model, head)
    adapt(model, recipe.train)
    model.processor = Processor(tokenizer, config.image_shape, config.max_length)
    return model


def _vocabulary(config: ModelConfig, weights: Weights | None, captions: Iterable[str]) -> CaptionTokenizer:
    """That of the weights, which know words by their numbers, unless another is named; else as the recipe says.

    `bert-base-uncased`, the default, is no other name for it: weights that bring a vocabulary mean that one.
    """
    named = config.tokenizer
    if weights and weights.tokenizer and named in (TRAIN, BERT):
        return weights.tokenizer
    if named == TRAIN:
        return CaptionTokenizer.train(captions, config.vocab_size)
    encoder = Path(config.text_encoder)
    if (
        named == BERT
        and not weights
        and config.pretrained
        and any((encoder / name).is_file() for name in VOCABULARY_FILES)
    ):
        return CaptionTokenizer.load(encoder)
    try:
        return CaptionTokenizer.load(named)
    except UsageError as error:
        beside = f"put the vocab.txt of BERT beside {weights.place}, or " if weights and named == BERT else ""
        raise UsageError(
            f"model.tokenizer: {error.message}", hint=f"{beside}name a vocabulary that is here: model.tokenizer=PATH"
        ) from error


def start_teacher(model: TCL, recipe: Recipe) -> MomentumTeacher:
    """The teacher of a model to train: a copy, and a copy is not compiled by itself."""
    teacher = MomentumTeacher(model)
    if recipe.train.compile:
        compile_layers(teacher.model)
    return teacher


def config_of(source: str) -> ModelConfig:
    """The `model` section of a recipe that starts from a model: its sizes, its vocabulary, its weights.

    Args:
        source: a run, a model folder, a checkpoint, a published `.pth`, or a hub id.

    Raises:
        UsageError: there is no such model, or it is not a whole one.
        CheckpointError: it is damaged.
    """
    weights = open_weights(source)
    config = weights.config
    if config is None and weights.layout.published:
        config = infer_config(weights.renamed(), weights.place)[0]
    if config is None:
        raise UsageError(
            f"{source}: an encoder ({weights.layout.kind}), and fine-tuning starts from a whole model",
            hint=f"pre-train with it first: tcl pretrain --data PAIRS --init {source}",
        )
    tokenizer = TRAIN if weights.tokenizer else BERT
    return config.model_copy(update={"init": source, "pretrained": False, "tokenizer": tokenizer})


def _untrained(weights: Weights | None, report: KeyReport | None, checkpoint: Path | None) -> tuple[str, ...]:
    """Parts of a model that nothing has trained when the run starts, or goes on."""
    if checkpoint:
        return read_untrained(read_json(checkpoint / CONFIG_FILE))
    if report is None:
        return tuple(PARTS)
    random = {*parts_of(report.missing), *(weights.untrained if weights else ())}
    return tuple(part for part in PARTS if part in random)


def _load(model: TCL, weights: Weights, tokenizer: CaptionTokenizer, head: HeadConfig | None) -> tuple[TCL, KeyReport]:
    """Load the weights, those of their own head included where the wanted one can use them."""
    known = weights.head
    if head is None or known is None or known.images_per_text > head.images_per_text:
        return model, initialise(model, weights, tokenizer=tokenizer)
    model = attach_head(model, known)
    published = weights.layout.published
    whole = replace(
        weights,
        layout=Layout(weights.layout.kind, whole=True),
        state=task_state(weights.state) if published else weights.state,
    )
    return model, initialise(model, whole, tokenizer=tokenizer)
