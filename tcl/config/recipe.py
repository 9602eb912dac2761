"""Recipes: a task and five typed sections, read strictly from YAML, changed by `key=value`, written back as resolved.

Every field says what it is. Wrong recipes are reported whole: all errors at once, each with its key, and an unknown key
with the nearest name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tcl.config.files import apply_override, find_recipe, read_yaml
from tcl.errors import ConfigError, reason_of


class Section(BaseModel):
    """A strict section: unknown keys are errors, values are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class TextEncoderArgs(Section):
    """Sizes of the text and fusion encoder together (BERT's own names); the defaults are BERT-base."""

    hidden_size: int = Field(768, ge=1, description="width of the token states")
    num_hidden_layers: int = Field(12, ge=2, description="text layers and fusion layers together")
    num_attention_heads: int = Field(12, ge=1, description="attention heads; divides hidden_size")
    intermediate_size: int = Field(3072, ge=1, description="width of the feed-forward layers")
    max_position_embeddings: int = Field(512, ge=2, description="longest text the model can represent, tokens")
    dropout: float = Field(0.1, ge=0, lt=1, description="on hidden states and attention, while training")
    layer_norm_eps: float = Field(1e-12, gt=0, description="epsilon of the layer norms")


SYNONYMS = {
    **dict.fromkeys(("learning_rate", "learningrate", "peak_lr", "max_lr"), "optim.lr"),
    **dict.fromkeys(("epoch", "num_epochs", "n_epochs", "num_train_epochs", "max_epochs"), "train.epochs"),
    **dict.fromkeys(("batch", "batchsize", "bs", "train_batch_size", "per_device_train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("wd", "decay"), "optim.weight_decay"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "optim.warmup_steps"),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad", "max_grad_norm", "gradient_clip_val"), "optim.clip_norm"),
    **dict.fromkeys(("dim", "embedding_dim", "projection_dim"), "model.embed_dim"),
    **dict.fromkeys(("img_size", "image_res", "resolution", "size"), "model.image_size"),
    **dict.fromkeys(("backbone", "vision_encoder", "visual_encoder"), "model.image_encoder"),
    **dict.fromkeys(("max_steps", "num_steps", "iterations"), "train.steps"),
    **dict.fromkeys(("random_seed", "rng_seed"), "train.seed"),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype"), "train.precision"),
    **dict.fromkeys(("grad_accum", "accum", "accumulation", "gradient_accumulation_steps"), "train.accumulate"),
    **dict.fromkeys(("num_workers", "n_workers", "dataloader_num_workers"), "data.workers"),
    **dict.fromkeys(("temp", "tau"), "loss.temperature"),
    **dict.fromkeys(("queue", "queue_len"), "loss.queue_size"),
}
"""What people type for a setting, where other tools have another name for it."""

SMALLEST_SIDE, LARGEST_SIDE = 16, 1024  # of an image, pixels


def off_grid(image_shape: tuple[int, int], patch: tuple[int, int]) -> str | None:
    """Why an image size does not suit patches: what is left over beside the last whole one has no effect at all.

    Args:
        image_shape: (height, width), pixels.
        patch: (height, width), pixels.

    Returns:
        what is wrong, with the two nearest sizes that suit; None where nothing is.
    """
    for side, step, which in zip(image_shape, patch, ("height", "width"), strict=True):
        if side % step:
            below = side // step * step
            near = [size for size in (below, below + step) if max(step, SMALLEST_SIDE) <= size <= LARGEST_SIDE]
            name = "image_size" if image_shape[0] == image_shape[1] else f"image_size: {which}"
            return (
                f"{name} {side} is no multiple of the patch, {step} pixels: the last {side % step} would be ignored; "
                f"use {' or '.join(map(str, near))}"
            )
    return None


EncoderName = Literal["image_encoder", "text_encoder", "fusion_encoder"]
"""What can be kept as it is, or adapted with few weights."""

TaskName = Literal["pretrain", "text_assignment", "retrieval", "vqa", "entailment", "nlvr2", "grounding"]
"""What a run trains for."""


class ModelConfig(Section):
    """Architecture and vocabulary; fixed once a run has started."""

    image_encoder: str = Field("deit_base_patch16_224", description="a timm ViT with a class token, by name")
    image_encoder_args: dict[str, int | float] = Field({}, description="changes to it, e.g. {depth: 4, embed_dim: 128}")
    image_size: int | list[int] = Field(256, description="side of the square input, pixels, or [height, width]")
    text_encoder: str = Field("bert-base-uncased", description="BERT on the hub or in a folder; read when pretrained")
    text_encoder_args: TextEncoderArgs = Field(TextEncoderArgs(), description="its sizes; the defaults are BERT-base")
    pretrained: bool = Field(True, description="start from the weights of image_encoder and text_encoder")
    init: str | None = Field(
        None, description="start from this model instead: a run, a model folder, a published .pth or a hub id"
    )
    fusion_layer: int = Field(6, ge=1, description="first BERT layer that attends to the image")
    embed_dim: int = Field(256, ge=1, description="width of the vectors")
    max_length: int = Field(25, ge=2, description="tokens per caption, [CLS] included; longer ones are cut")
    tokenizer: str = Field(
        "bert-base-uncased", description="tokenizer.json, vocab.txt, a folder with one, a hub id, or 'train'"
    )
    vocab_size: int = Field(4000, ge=10, description="largest vocabulary when tokenizer is 'train'")

    @field_validator("image_size", mode="before")
    @classmethod
    def _sides(cls, value: Any) -> Any:
        sides = list(value) if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2 or not all(type(side) is int and SMALLEST_SIDE <= side <= LARGEST_SIDE for side in sides):
            raise ValueError("a side is 16 to 1024 pixels; of another shape than a square, write [height, width]")
        return sides[0] if sides[0] == sides[1] else sides

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the input, pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @model_validator(mode="after")
    def _fits(self) -> Self:
        text = self.text_encoder_args
        if self.fusion_layer >= text.num_hidden_layers:
            raise ValueError(f"fusion_layer {self.fusion_layer} leaves no fusion layer of {text.num_hidden_layers}")
        if text.hidden_size % text.num_attention_heads:
            raise ValueError(f"hidden_size {text.hidden_size} is no multiple of {text.num_attention_heads} heads")
        if self.max_length > text.max_position_embeddings:
            raise ValueError(f"max_length {self.max_length} exceeds max_position_embeddings")
        named = re.search(r"patch(\d+)", self.image_encoder)
        patch = int(self.image_encoder_args.get("patch_size", named[1] if named else 1))
        if patch > 0 and (problem := off_grid(self.image_shape, (patch, patch))):
            raise ValueError(problem)
        return self


class LossConfig(Section):
    """The objective (section 3 of the paper)."""

    temperature: float = Field(0.07, ge=0.001, le=0.5, description="initial contrastive temperature; it is learned")
    momentum: float = Field(0.995, ge=0, lt=1, description="of the teacher's moving average")
    queue_size: int = Field(65536, ge=1, description="teacher features kept as negatives")
    alpha: float = Field(0.4, ge=0, le=1, description="weight of the teacher's soft targets; 0: no distillation")
    alpha_ramp: bool = Field(True, description="ramp alpha up over the first epoch")
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of tokens to predict")


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    warmup_lr: float = Field(1e-5, ge=0, description="learning rate of the first step")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine")
    warmup_steps: int = Field(2000, ge=0, description="steps from warmup_lr to lr")
    schedule: Literal["smooth", "published"] = Field(
        "smooth",
        description="smooth: every step moves; published: the reference's stairs, one per 100 steps, then per epoch",
    )
    weight_decay: float = Field(0.02, ge=0, description="of all parameters but biases and others with one dimension")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null does not clip")

    @model_validator(mode="after")
    def _whole_stairs(self) -> Self:
        if self.schedule == "published" and self.warmup_steps % 100:
            raise ValueError(f"the published schedule warms up in stairs of 100 steps, not {self.warmup_steps}")
        return self


class DataConfig(Section):
    """Where the pairs come from."""

    train: list[str] = Field([], description="sources of training rows: tables, shards, image folders, scenes:")
    val: list[str] = Field([], description="sources of validation rows; none skips validation")
    images: str | None = Field(
        None, description="folder that relative image paths start from; default: the source's own"
    )
    image_column: str | None = Field(None, description="column of a table that holds the image; default: a usual name")
    text_column: str | None = Field(None, description="likewise of the text, the caption or the question")
    batch_size: int = Field(64, ge=1, description="samples per device and forward pass")
    workers: int = Field(4, ge=0, description="loader processes")
    augment: Literal["published", "whole", "mild", "none"] = Field(
        "published",
        description="random views of an image; whole: flipped and distorted, not cropped; mild keeps colours and sides",
    )
    min_scale: float = Field(0.2, gt=0, le=1, description="smallest area of a published crop; 0.5 in fine-tuning")
    answers: str | None = Field(
        None, description="vqa: file of the answers to choose from; default: those of the training data"
    )
    max_answers: int | None = Field(None, ge=1, description="vqa: of the training data's answers, the most frequent")


class TrainConfig(Section):
    """Length, precision, and what is kept."""

    epochs: int = Field(30, ge=1, description="passes over the training pairs")
    steps: int | None = Field(None, ge=1, description="stop after this many steps instead")
    seed: int = Field(42, ge=0, lt=2**32, description="of weights, order, augmentation, masking and dropout")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the forward pass, losses in fp32; auto: bf16 on a GPU, fp32 on a CPU"
    )
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step; queue and teacher move once")
    activation_checkpointing: bool = Field(
        False, description="compute the layers' activations again in the backward pass instead of keeping them"
    )
    compile: bool = Field(False, description="compile the layers with torch.compile; the first steps take longer")
    freeze: list[EncoderName] = Field([], description="encoders whose weights stay as they are")
    lora: list[EncoderName] = Field(
        [], description="encoders that are adapted by low-rank updates of their frozen weights"
    )
    lora_rank: int = Field(8, ge=1, description="rank of these updates")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    eval_every: int | None = Field(1000, ge=1, description="steps between validations; null: once per epoch")
    eval_top_k: int = Field(
        0, ge=0, description="in validation, candidates to re-rank (0: none), or of vqa answers to decode (0: all)"
    )
    patience: int | None = Field(None, ge=1, description="stop after so many validations in a row without a better one")
    log_every: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    keep: int = Field(3, ge=1, description="newest checkpoints kept; the best one is kept beside them")
    select: Literal["last", "best"] = Field("last", description="which weights become the model of the run")
    track: list[Literal["wandb", "mlflow"]] = Field([], description="also send the metrics there; TensorBoard has them")
    upload: str | None = Field(None, description="fsspec URL that checkpoints are copied to, e.g. s3://bucket/run")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        both = sorted(set(self.freeze) & set(self.lora))
        if both:
            raise ValueError(f"{both[0]} cannot be frozen and adapted at once: name it in freeze or in lora")
        return self


class Recipe(Section):
    """A whole run."""

    task: TaskName = Field("pretrain", description="what is trained: pre-training, or the task of a fine-tuning")
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _of_the_task(self) -> Self:
        if self.task != "vqa" and (self.data.answers is not None or self.data.max_answers is not None):
            raise ValueError(f"data.answers and data.max_answers are settings of vqa, not of {self.task}")
        if self.data.answers is not None and self.data.max_answers is not None:
            raise ValueError("data.max_answers cuts the list that is made from the data, and data.answers names one")
        if self.train.eval_top_k and self.task in ("entailment", "nlvr2", "grounding"):
            raise ValueError(f"train.eval_top_k: in {self.task} there is nothing to re-rank or to decode")
        return self

    def to_yaml(self) -> str:
        """The resolved recipe; `load_recipe` reads it back unchanged."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, width=120)


def load_recipe(source: str | Path, overrides: Sequence[str] = (), model: ModelConfig | None = None) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides.

    Args:
        source: a file, or the name of a shipped recipe.
        overrides: they win over the recipe.
        model: what holds where the recipe's own `model` section says nothing.

    Raises:
        ConfigError: naming the file and every wrong key at once.
    """
    path = find_recipe(source)
    values = read_yaml(path)
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: a recipe is a mapping with the sections {', '.join(Recipe.model_fields)}")
    values = values or {}
    own = values.get("model") or {}
    if model and isinstance(own, dict):
        values["model"] = model.model_dump() | own
    return build_recipe(values, overrides, place=str(path))


def build_recipe(values: dict[str, Any], overrides: Sequence[str] = (), place: str = "recipe") -> Recipe:
    """Validate a nested mapping with overrides applied; where it is valid without them, they are what is wrong."""
    own = deepcopy(values)
    for override in overrides:
        apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        if overrides and _is_valid(own):
            place = "the settings given"
        raise ConfigError(
            "\n".join([f"{place}: {len(lines)} wrong setting{'s' * (len(lines) > 1)}", *lines]),
            hint="tcl recipes show demo --keys lists every setting with its meaning",
        ) from error


def _is_valid(values: dict[str, Any]) -> bool:
    try:
        Recipe.model_validate(values)
    except ValidationError:
        return False
    return True


def nearest_setting(key: str) -> str | None:
    """The setting that was probably meant by a key that is none."""
    names = [name for name, _ in settings()]
    last = key.rpartition(".")[2].lower().replace("-", "_")
    same = [name for name in names if name.rpartition(".")[2] == last]
    if same or last in SYNONYMS:
        return same[0] if same else SYNONYMS[last]
    close = difflib.get_close_matches(key, names, n=1) or difflib.get_close_matches(last, SYNONYMS, n=1, cutoff=0.85)
    return SYNONYMS.get(close[0], close[0]) if close else None


def _explain(item: Any) -> str:
    """One line for one pydantic error: key, what is wrong, what was given."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        meant = nearest_setting(key)
        return f"  {key}: no such setting" + (f"; did you mean {meant}?" if meant else "")
    message = item["msg"].removeprefix("Value error, ")  # pydantic's, before what a validator of ours says
    given = "" if isinstance(item["input"], dict | BaseModel) else f", not {item['input']!r}"
    return f"  {key}: {message[0].lower()}{message[1:]}{given}"


def one_line(error: Exception) -> str:
    """What is wrong with the `model` section that a model carries, in one line; other errors as they are."""
    if isinstance(error, ValidationError):
        return "; ".join(_explain(item).strip() for item in error.errors())
    return f"{error} is missing" if isinstance(error, KeyError) else reason_of(error)


def settings(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every settable key with its description, in order."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{key}.")
        else:
            yield key, field.description or ""
