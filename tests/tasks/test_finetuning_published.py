"""Fine-tuning from published checkpoints and with published settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tcl.config.files import shipped_recipes
from tcl.config.recipe import load_recipe
from tcl.distributed.world import World
from tcl.errors import CheckpointError, UsageError
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.task_model import NOT_TRAINED
from tcl.tasks.build import build_training
from tcl.training.optim import distillation_weight, learning_rate
from tcl.training.start_model import config_of
from tcl.weights.load import load_model
from tcl.weights.published import build_fine_tuned, read_reference
from tests.conftest import make_tiny_model
from tests.published import WIDE, model_for, recorded_state, write_pth
from tests.tasks.cases import task_config
from tests.tasks.finetuning import TASKS, recipe_for, write_task

CPU = World()


@pytest.mark.parametrize(
    ("case", "task"), [("pretrain", "vqa"), ("retrieval", "retrieval"), ("ve", "entailment"), ("vqa", "vqa")]
)
def test_from_a_published_checkpoint(golden: Any, case: str, task: str, tmp_path: Path) -> None:
    path = write_pth(tmp_path / "published.pth", recorded_state(golden, case))
    config = model_for(golden, "pretrain").config if case == "pretrain" else task_config(golden(case)[1])
    recipe = recipe_for(task, path, *write_task(tmp_path, task), model=config)
    data = recipe.data.model_copy(update={"batch_size": 2})
    training = build_training(recipe.model_copy(update={"data": data}), CPU)
    state = golden(case)[0]
    key = {"ve": "cls_head.0.weight", "vqa": "text_decoder.cls.predictions.bias"}.get(case, "visual_encoder.cls_token")
    own = training.model.state_dict()[key]
    assert torch.equal(own, state[f"state/{key}"]) == (case != "ve")  # of other classes than the published ones
    training.train_step([next(training.loader.batches(0))])


def test_the_model_section_is_that_of_the_model(tiny_model_folder: Path, golden: Any, tmp_path: Path) -> None:
    own = config_of(str(tiny_model_folder))
    assert own.embed_dim == 16 and own.init == str(tiny_model_folder) and own.tokenizer == "train"
    model = make_tiny_model(**{key: WIDE[key] for key in ("image_encoder_args", "text_encoder_args")})
    path = write_pth(tmp_path / "wide.pth", dict(model.state_dict()))
    published = config_of(str(path))
    assert published.image_size == 32 and published.text_encoder_args.hidden_size == 64


@pytest.mark.parametrize(
    ("name", "job", "steps_per_epoch"),
    [
        ("retrieval-coco", "retrieval_coco_250", 250),
        ("retrieval-flickr", "retrieval_flickr_250", 250),
        ("vqa", "vqa_600", 600),
        ("snli-ve", "ve_250", 250),
        ("nlvr2", "nlvr_250", 250),
        ("nlvr2-ta", "nlvr_pretrain_250", 250),
    ],
)
def test_published_recipes_follow_the_published_schedule(
    golden: Any, name: str, job: str, steps_per_epoch: int
) -> None:
    recipe, recorded = load_recipe(name), golden("schedule")[1][job]
    total = recorded["total_steps"]
    assert total == recipe.train.epochs * steps_per_epoch and recorded["optimizer"]["weight_decay"] == 0.02
    for run in recorded["lr_runs"]:
        assert learning_rate(run["first_step"], recipe.optim, steps_per_epoch, total) == pytest.approx(run["lr"]), run
    for sample in recorded["alpha_samples"]:
        if sample["alpha"] is not None:
            loss = recipe.loss
            alpha = distillation_weight(sample["step"], loss.alpha, steps_per_epoch, loss.alpha_ramp)
            assert name == "vqa" or alpha == pytest.approx(sample["alpha"])


def test_every_task_has_recipes() -> None:
    tasks = {name: load_recipe(name).task for name in shipped_recipes()}
    assert {tasks[f"small-{task}"] for task in ("retrieval", "grounding", "entailment", "nlvr2", "vqa")} == set(
        TASKS
    ) - {"text_assignment"}
    assert tasks["nlvr2-ta"] == "text_assignment" and tasks["refcoco+"] == "grounding"


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa"])
def test_published_fine_tuned_checkpoints_answer_their_task(task: str, tmp_path: Path) -> None:
    labels = {
        "entailment": ["contradiction", "neutral", "entailment"],
        "nlvr2": ["False", "True"],
        "vqa": ["yes", "no"],
    }
    changes = {key: WIDE[key] for key in ("image_encoder_args", "text_encoder_args")}
    head = HeadConfig.model_validate(
        {"task": task, "labels": labels[task]} | ({"decoder_layers": 2} if task == "vqa" else {})
    )
    model = attach_head(make_tiny_model(**changes), head)
    state = {name.replace("text_encoder.bert.", "text_encoder."): t for name, t in model.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(NOT_TRAINED)}
    for layer in (3, 5):  # the published file holds shared keys and values twice
        for part in (f"key.{name}" for name in ("weight", "bias")) if task == "nlvr2" else ():
            name = "text_encoder.encoder.layer.{}.crossattention.self." + part
            state[name.format(layer)] = state[name.format(layer - 1)]
    path = write_pth(tmp_path / "published.pth", state)
    model.processor.tokenizer.save(tmp_path)
    if task == "vqa":
        with pytest.raises(UsageError, match="holds no answers") as error:
            build_fine_tuned(read_reference(path))
        assert "answer_list.json" in str(error.value.hint)
        (tmp_path / "answer_list.json").write_text(json.dumps(labels[task]))
    loaded = build_fine_tuned(read_reference(path))
    assert loaded.head == head
    ours = model.state_dict()
    trained = {name: tensor for name, tensor in loaded.state_dict().items() if not name.startswith(NOT_TRAINED)}
    assert len(trained) > 60 and all(torch.equal(ours[name], tensor) for name, tensor in trained.items())
    with pytest.raises(CheckpointError, match="lacks parts of the model"):
        load_model(path)
    del state["visual_encoder.cls_token"]
    with pytest.raises(CheckpointError, match=r"missing \(visual_encoder.cls_token"):
        build_fine_tuned(read_reference(write_pth(tmp_path / "published.pth", state)))


def test_a_pretrained_checkpoint_has_no_head(golden: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint of pre-training, without the head"):
        build_fine_tuned(read_reference(write_pth(tmp_path / "a.pth", recorded_state(golden, "pretrain"))))
