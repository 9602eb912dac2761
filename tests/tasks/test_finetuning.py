"""Fine-tuning from the outside: every task trains, resumes exactly, and leaves a model that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tcl.data.images.augment import build_transform
from tcl.data.pairs.samples import IdentifiedPairs
from tcl.data.pairs.table import read_pairs
from tcl.distributed.share import ALONE
from tcl.distributed.world import World
from tcl.errors import ConfigError
from tcl.evaluation.held_out import HeldOut
from tcl.report.records import read_records
from tcl.tasks.build import build_training
from tcl.training.checkpoint import load_state
from tcl.training.loop import fit
from tcl.weights.describe import describe
from tcl.weights.files import checkpoints
from tcl.weights.load import load_model
from tests.conftest import make_tiny_model
from tests.tasks.finetuning import TASKS, head_weights, question, recipe_for, scene, write_rows, write_task
from tests.tasks.shares import in_processes

CPU = World()


@pytest.fixture(scope="module")
def runs(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of every task, never interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        data = write_task(folder, task)
        assert fit(build_training(recipe_for(task, tiny_model_folder, *data), CPU), folder / task).finished
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_and_validates(runs: Path, task: str) -> None:
    lines = read_records(runs / task / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and all(torch.tensor(losses).isfinite())
    metric = "val_r_mean" if task == "retrieval" else "val_accuracy"
    values = [line[metric] for line in lines if metric in line]
    assert len(values) == 2 and all(0 <= value <= 100 for value in values)
    best = json.loads((runs / task / "best.json").read_text())
    assert best["value"] == max(values) and metric.endswith(best["metric"])


@pytest.mark.parametrize("task", TASKS)
def test_processes_validate_what_one_does(runs: Path, task: str, tiny_model_folder: Path) -> None:
    training = build_training(recipe_for(task, tiny_model_folder, *write_task(runs, task)), CPU)
    training.model.eval()
    expected = training.task.validate(ALONE)
    assert in_processes(2, training.task.validate) == [expected] * 2


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa", "grounding"])
def test_the_report_shows_validation_samples(runs: Path, task: str) -> None:
    page = (runs / task / "report.html").read_text()
    samples = page.partition("<h2>Validation samples</h2>")[2].partition("</section>")[0]
    images = samples.count("data:image/jpeg")
    assert images == (2 if task == "nlvr2" else 1) * samples.count("<article>") > 0
    assert ("IoU" if task == "grounding" else "predicted: probability") in samples


@pytest.mark.parametrize("task", TASKS)
def test_resumed_equals_never_stopped(runs: Path, task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(task, tiny_model_folder, *write_task(runs, task))
    first, last = checkpoints(runs / task)
    fit(build_training(recipe, CPU, first), tmp_path / "resumed")
    weights, state, _ = load_state(checkpoints(tmp_path / "resumed")[-1])
    expected, expected_state, _ = load_state(last)
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert state.keys() == expected_state.keys()
    for part in ("teacher", "queue"):
        for name, tensor in expected_state.get(part, {}).items():
            assert torch.equal(state[part][name], tensor), name


@pytest.mark.parametrize("task", TASKS)
def test_the_model_folder_is_a_normal_one(runs: Path, task: str) -> None:
    model = load_model(runs / task)
    weights = load_state(checkpoints(runs / task)[-1])[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert bool(head_weights(model)) == (task not in ("retrieval", "grounding"))
    card = (runs / task / "model" / "README.md").read_text()
    assert (f"Fine-tuned for {task}. " in card) == bool(head_weights(model))
    image, text = model.encode_image(torch.zeros(2, 3, 32, 32)), model.encode_text([[2, 7]] * 2, [[1, 1]] * 2)
    assert image.image_feat.shape == (2, 16) and model.match(image, text).shape == (2, 2)
    description = describe(str(runs / task))
    assert description.problem is None and not description.keys.missing and not description.keys.unknown
    assert description.architecture.get("task") == (task if head_weights(model) else None)
    assert description.parameters["total"] == sum(tensor.numel() for tensor in model.state_dict().values())


@pytest.mark.parametrize("task", [task for task in TASKS if task != "text_assignment"])
def test_the_model_of_a_run_predicts(runs: Path, task: str) -> None:
    recipe = recipe_for(task, "", *write_task(runs, task))
    held_out, model = HeldOut(recipe, recipe.data.val), load_model(runs / task)
    held_out.check(model)
    result = held_out.evaluate(model)
    assert 0 <= result.figures()["r_mean" if task == "retrieval" else "accuracy"] <= 100 and not result.bad
    assert result.predictions
    if task in ("vqa", "entailment", "nlvr2"):
        assert abs(sum(entry["confidence"] for entry in result.predictions[0]["top"]) - 1) < 1e-4


def test_a_test_split_without_labels_gives_predictions_alone(runs: Path, tmp_path: Path) -> None:
    row = {key: value for key, value in question(1).items() if key != "answers"}
    held_out = HeldOut(recipe_for("vqa", "", ""), [write_rows(tmp_path / "test.jsonl", [row])])
    result = held_out.evaluate(load_model(runs / "vqa"))
    assert result.figures() == {} and result.predictions[0]["answer"] in load_model(runs / "vqa").head.labels


@pytest.mark.parametrize("task", TASKS)
def test_what_is_trained_moves_and_nothing_else(runs: Path, task: str, tiny_model_folder: Path) -> None:
    """A parameter without gradient would make training on several devices wait for it for ever."""
    recipe = recipe_for(task, tiny_model_folder, *write_task(runs, task))
    training = build_training(
        recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"alpha_ramp": False})}), CPU
    )
    batch = next(training.loader.batches(0))
    losses = training.task.losses(training.objective, batch, 0.4, seed=1)
    losses.total.backward()
    for name, parameter in training.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("task", ["retrieval", "entailment"])
def test_distillation_can_be_off(runs: Path, task: str, tiny_model_folder: Path) -> None:
    recipe = recipe_for(task, tiny_model_folder, *write_task(runs, task), loss={"alpha": 0})
    training = build_training(recipe, CPU)
    training.train_step([next(training.loader.batches(0))])
    assert ("teacher" in training.task.state_dict()) == (
        task == "retrieval"
    )  # whose queue is of the teacher's features


def test_a_teacher_cannot_appear_on_resume(runs: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    data = write_task(runs, "entailment")
    fit(build_training(recipe_for("entailment", tiny_model_folder, *data, loss={"alpha": 0}), CPU), tmp_path)
    with pytest.raises(ConfigError, match="started without a teacher"):
        build_training(recipe_for("entailment", tiny_model_folder, *data), CPU, checkpoints(tmp_path)[0])


def test_a_run_keeps_its_task(runs: Path, tiny_model_folder: Path) -> None:
    recipe = recipe_for("retrieval", tiny_model_folder, *write_task(runs, "retrieval"))
    with pytest.raises(ConfigError, match="the task is retrieval now, but grounding"):
        build_training(recipe, CPU, checkpoints(runs / "grounding")[0])


@pytest.mark.parametrize("adaptation", [{"lora": ["fusion_encoder"]}, {"freeze": ["image_encoder"]}])
@pytest.mark.parametrize("task", ["nlvr2", "vqa"])
def test_frozen_and_low_rank_encoders(
    runs: Path, task: str, adaptation: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(task, tiny_model_folder, *write_task(runs, task), train=adaptation)
    fit(build_training(recipe, CPU), tmp_path / "whole")
    fit(build_training(recipe, CPU, checkpoints(tmp_path / "whole")[0]), tmp_path / "resumed")
    whole, resumed = load_model(tmp_path / "whole"), load_model(tmp_path / "resumed")
    assert whole.model_hash == resumed.model_hash
    start = load_model(tiny_model_folder).state_dict()
    moved = {name for name, tensor in whole.state_dict().items() if name in start and not tensor.equal(start[name])}
    image = {name for name in moved if name.startswith("visual_encoder.")}
    assert bool(image) == ("lora" in adaptation) and moved


@pytest.mark.parametrize("size", [48, [32, 48]])
@pytest.mark.parametrize("task", ["retrieval", "entailment"])
def test_any_resolution(runs: Path, task: str, size: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    train, val = write_task(runs, task)
    model = make_tiny_model().config.model_copy(update={"image_size": size})
    recipe = recipe_for(task, tiny_model_folder, train, val, model=model, train={"steps": 1})
    fit(build_training(recipe, CPU), tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    assert loaded.processor.image_size == recipe.model.image_shape
    again = build_training(recipe_for(task, tmp_path / "run", train, model=model), CPU)
    assert torch.equal(again.model.visual_encoder.pos_embed, loaded.visual_encoder.pos_embed)
    square = model.model_copy(update={"image_size": 24})
    assert build_training(
        recipe_for(task, tmp_path / "run", train, model=square), CPU
    ).model.visual_encoder.grid_size == (
        3,
        3,
    )


def test_a_continued_head_is_kept_and_another_starts_anew(runs: Path) -> None:
    train, val = write_task(runs, "entailment")
    before = head_weights(load_model(runs / "entailment"))
    same = head_weights(build_training(recipe_for("entailment", runs / "entailment", train, val), CPU).model)
    assert all(torch.equal(same[name], tensor) for name, tensor in before.items())
    other = build_training(recipe_for("nlvr2", runs / "entailment", *write_task(runs, "nlvr2")), CPU).model
    assert other.cls_head[2].out_features == 2


def test_nlvr2_takes_over_the_layers_of_text_assignment(runs: Path) -> None:
    start = load_model(runs / "text_assignment").state_dict()
    model = build_training(
        recipe_for("nlvr2", runs / "text_assignment", *write_task(runs, "nlvr2")), CPU
    ).model.state_dict()
    layers = {name for name in start if ".layer." in name}
    assert len(layers) > 60 and all(torch.equal(model[name], start[name]) for name in layers)
    second, first = (f"text_encoder.bert.encoder.layer.{layer}.output.dense.weight" for layer in (3, 2))
    assert not torch.equal(model[first], model[second])


def test_a_task_with_one_image_takes_the_first_layer_of_each_pair(runs: Path) -> None:
    start = load_model(runs / "nlvr2").state_dict()
    model = build_training(recipe_for("vqa", runs / "nlvr2", *write_task(runs, "vqa")), CPU).model.state_dict()
    name = "text_encoder.bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(model[name.format(3)], start[name.format(4)])


def test_image_ids_are_those_of_the_data(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [
        {"image": scene(number % 3), "caption": f"text {number}", "image_id": f"id{number % 3}"} for number in range(6)
    ]
    index = read_pairs([write_rows(tmp_path / "pairs.jsonl", rows)])
    model = load_model(tiny_model_folder)
    samples = IdentifiedPairs(index, model.processor.tokenizer, build_transform("none", 32), 40)
    batch = samples.collate([samples.load(row) for row in (1, 3, 4, 0)], [], [])
    assert batch.image_ids.tolist() == [1, 0, 1, 0] and batch.images.shape == (4, 3, 32, 32)


def test_it_stops_early_and_a_resumed_run_knows(runs: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 40, "eval_every": 1, "patience": 2, "select": "best", "checkpoint_every": 100}
    recipe = recipe_for("entailment", tiny_model_folder, *write_task(runs, "entailment"), train=settings)
    recipe = recipe.model_copy(
        update={"optim": recipe.optim.model_copy(update={"lr": 1e-9, "warmup_lr": 0, "min_lr": 0})}
    )
    result = fit(build_training(recipe, CPU), tmp_path)
    assert result.finished and result.step == 3  # the first is the best
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1
    again = fit(build_training(recipe, CPU, checkpoints(tmp_path)[-1]), tmp_path)
    assert again.finished and again.step == 3 and load_model(tmp_path).head.task == "entailment"


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("entailment", {"data": {"max_answers": 3}}, "settings of vqa, not of entailment"),
        ("vqa", {"data": {"max_answers": 3, "answers": "list.json"}}, "data.answers names one"),
        ("nlvr2", {"train": {"eval_top_k": 3}}, "nothing to re-rank"),
        ("vqa", {"data": {"train": []}}, "data.train names no rows of vqa"),
    ],
)
def test_settings_that_do_not_belong_to_a_task(task: str, changes: Any, message: str, tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_training(recipe_for(task, tiny_model_folder, "x.jsonl", **changes), CPU)


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa"])
def test_it_learns(task: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Six rows are learned by heart."""
    changes = {
        "loss": {"alpha": 0},
        "optim": {"lr": 3e-3, "warmup_lr": 3e-3},
        "data": {"batch_size": 6, "augment": "none"},
        "train": {"steps": 80},
    }
    recipe = recipe_for(task, tiny_model_folder, write_task(tmp_path, task, 6)[0], **changes)
    training = build_training(recipe, CPU)
    batch = next(training.loader.batches(0))
    losses = [training.train_step([batch])["loss"].item() for _ in range(80)]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
