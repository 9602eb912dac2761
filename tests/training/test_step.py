"""The order within a step: clamp, teacher, forward, backward, clip, update, enqueue, as in the published loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tcl.distributed.world import World
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.tasks.build import build_training
from tcl.training.trainer import Training
from tests.conftest import TINY, make_tiny_model
from tests.tasks.finetuning import recipe_for, write_task

MOMENTUM = 0.9


@dataclass
class Record:
    """What a step did, in order, and what was seen on the way."""

    events: list[str] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)  # when the teacher moves, and in each forward pass
    queues: list[Tensor] = field(default_factory=list)  # of images, in each forward pass
    pixels: dict[str, list[Tensor]] = field(default_factory=lambda: {"student": [], "teacher": []})
    student: dict[str, Tensor] = field(default_factory=dict)  # at the update
    norms: list[float] = field(default_factory=list)  # of the gradients that were updated by


@dataclass
class Step:
    """A real step, and what was there before it."""

    task: str
    accumulate: int
    clip_norm: float | None
    temperature: float
    training: Training
    batches: list[Any]
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    queue: dict[str, Tensor]  # empty where a task has none
    record: Record

    @property
    def teacher_now(self) -> MomentumTeacher:
        return self.training.task.objective.teacher  # type: ignore[return-value]


def training_of(task: str, folder: Path, init: Path, accumulate: int, clip_norm: float | None) -> Training:
    """A training whose teacher is not its student, without dropout, so that a second forward pass gives the same."""
    data = write_task(folder, "retrieval" if task == "pretrain" else task, rows=12)
    model = make_tiny_model(text_encoder_args=TINY["text_encoder_args"] | {"dropout": 0.0}).config
    changes: dict[str, dict[str, Any]] = {
        "loss": {"momentum": MOMENTUM, "alpha_ramp": False},
        "optim": {"clip_norm": clip_norm},
        "train": {"accumulate": accumulate},
    }
    training = build_training(recipe_for(task, init, *data, model=model, **changes), World())
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in training.task.objective.teacher.parameters():  # type: ignore[union-attr, operator]
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return training


def clones(named: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named}


def listen(training: Training, patch: pytest.MonkeyPatch) -> Record:
    """Record what the training does; everything is done by the real methods."""
    record, model = Record(), training.model
    move, enqueue, clip = MomentumTeacher.update, FeatureQueue.enqueue, nn.utils.clip_grad_norm_

    def update_teacher(*arguments: Any) -> None:
        record.events.append("teacher")
        record.temperatures.append(model.temp.item())
        move(*arguments)

    def fill_queue(*arguments: Any) -> None:
        record.events.append("enqueue")
        enqueue(*arguments)

    def clip_gradients(*arguments: Any) -> Tensor:
        record.events.append("clip")
        return clip(*arguments)

    def before_forward(*_: Any) -> None:
        record.events.append("forward")
        record.temperatures.append(model.temp.item())
        record.queues += [training.task.queue.image_queue.clone()] if hasattr(training.task, "queue") else []

    def before_update(*_: Any) -> None:
        record.events.append("update")
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        record.norms.append(nn.utils.get_total_norm(gradients).item())
        record.student = clones(model.named_parameters())

    patch.setattr(MomentumTeacher, "update", update_teacher)
    patch.setattr(FeatureQueue, "enqueue", fill_queue)
    patch.setattr(nn.utils, "clip_grad_norm_", clip_gradients)
    training.objective.register_forward_pre_hook(before_forward)
    training.optimizer.register_step_pre_hook(before_update)
    # Patches are projected first, so their gradient is the last.
    patches = model.visual_encoder.patch_embed.proj.weight
    patches.register_post_accumulate_grad_hook(lambda _: record.events.append("backward"))
    for name, net in (("student", model), ("teacher", training.task.objective.teacher.model)):
        seen = record.pixels[name]
        net.visual_encoder.patch_embed.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
    return record


CASES = [(1, None, 0.9), (2, 0.05, 0.0002)]  # temperatures beyond what is allowed in pre-training


@pytest.fixture(
    scope="module",
    params=[(task, *case) for task in ("pretrain", "retrieval", "entailment") for case in CASES],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def step(
    request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Step]:
    task, accumulate, clip_norm, temperature = request.param
    training = training_of(task, tmp_path_factory.mktemp("step"), tiny_model_folder, accumulate, clip_norm)
    with torch.no_grad():
        training.model.temp.fill_(temperature)
    batches = [next(training.loader.batches(epoch)) for epoch in range(accumulate)]
    student, teacher = (clones(m.named_parameters()) for m in (training.model, training.task.objective.teacher.model))
    queue = clones(training.task.state_dict().get("queue", {}).items())
    with pytest.MonkeyPatch.context() as patch:
        record = listen(training, patch)
        training.train_step(batches)
    yield Step(task, accumulate, clip_norm, temperature, training, batches, student, teacher, queue, record)


def test_the_order(step: Step) -> None:
    passes = ["forward", "backward"] * step.accumulate
    clips, enqueues = ["clip"] * bool(step.clip_norm), ["enqueue"] * step.accumulate * bool(step.queue)
    assert step.record.events == ["teacher", *passes, *clips, "update", *enqueues]


def test_the_temperature_is_clamped_first_and_in_pretraining_alone(step: Step) -> None:
    allowed = min(max(step.temperature, 0.001), 0.5) if step.task == "pretrain" else step.temperature
    assert step.record.temperatures == pytest.approx([allowed] * (1 + step.accumulate))


def test_the_student_moves_at_the_update_and_starts_anew(step: Step) -> None:
    moved = set()
    for name, parameter in step.training.model.named_parameters():
        assert name == "temp" or torch.equal(step.record.student[name], step.student[name])
        assert parameter.grad is None, name
        if not torch.equal(parameter, step.student[name]):
            moved.add(name)
    assert {"visual_encoder.patch_embed.proj.weight", "text_encoder.bert.embeddings.word_embeddings.weight"} < moved


def test_the_teacher_moves_once_towards_the_student_of_before(step: Step) -> None:
    for name, moved in step.teacher_now.model.named_parameters():
        expected = torch.lerp(step.teacher[name], step.student[name], 1 - MOMENTUM)
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_where_the_recipe_says_so(step: Step) -> None:
    """What is logged is their length before."""
    norm, logged = step.record.norms[0], step.training.grad_norm.item()
    if step.clip_norm:
        assert logged > 2 * step.clip_norm and norm == pytest.approx(step.clip_norm, rel=1e-3)
    else:
        assert norm == pytest.approx(logged)


def test_the_student_sees_the_first_views_and_the_teacher_the_second(step: Step) -> None:
    normalise = step.training.model.normalise_pixels
    second = [batch.images_aug if step.queue else batch.images for batch in step.batches]  # a task has one view
    for name, views in (("student", [batch.images for batch in step.batches]), ("teacher", second)):
        for seen, view in zip(step.record.pixels[name], views, strict=True):
            torch.testing.assert_close(seen, normalise(view))


def test_losses_are_against_the_queue_of_before(step: Step) -> None:
    assert len(step.record.queues) == step.accumulate * bool(step.queue)
    assert all(torch.equal(queue, step.queue["image_queue"]) for queue in step.record.queues)


@torch.no_grad()
def test_the_queue_is_filled_with_what_the_moved_teacher_makes_of_every_batch(step: Step) -> None:
    if step.task == "entailment":
        assert not step.queue
        return
    queue, teacher, size = step.training.task.queue, step.teacher_now.model, len(step.batches[0].images)
    assert int(queue.queue_ptr) == step.accumulate * size
    for number, batch in enumerate(step.batches):
        columns = slice(number * size, (number + 1) * size)
        images = teacher.encode_image(batch.images_aug).image_feat
        texts = teacher.encode_text(batch.input_ids, batch.attention_mask).text_feat
        torch.testing.assert_close(queue.image_queue[:, columns].T, images, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(queue.text_queue[:, columns].T, texts, rtol=1e-4, atol=1e-5)
        if step.task == "retrieval":
            assert torch.equal(queue.idx_queue[0, columns], batch.image_ids)
    rest = slice(step.accumulate * size, None)
    assert all(
        torch.equal(getattr(queue, name)[:, rest], step.queue[name][:, rest]) for name in ("image_queue", "text_queue")
    )


def test_each_pass_draws_anew(tiny_model_folder: Path, tmp_path: Path) -> None:
    """One batch twice in a step, and in the next: other masks, negatives and dropout. A second run draws the same."""

    def draws() -> list[tuple[list[int], int, Tensor]]:
        data = write_task(tmp_path, "retrieval")
        training = build_training(recipe_for("pretrain", tiny_model_folder, *data, train={"accumulate": 2}), World())
        made: list[tuple[list[int], int, Tensor]] = []

        def remember(_: nn.Module, inputs: Any, outputs: Any) -> None:
            masked, generator, text_feat = inputs[4], inputs[6], outputs[2]
            made.append((masked.positions.tolist(), generator.initial_seed(), text_feat.clone()))

        training.objective.register_forward_hook(remember)
        batch = next(training.loader.batches(0))
        for _ in range(2):
            training.train_step([batch, batch])
        return made

    first, second = draws(), draws()
    positions, seeds, features = zip(*first, strict=True)
    assert len({tuple(of_pass) for of_pass in positions}) == len(set(seeds)) == 4
    assert not torch.equal(features[0], features[1])  # of the teacher, which moves between steps alone
    assert all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))
