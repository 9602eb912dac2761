"""The teacher's moving average and the ring of features."""

from __future__ import annotations

from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl.models.tcl import TCL
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tests.conftest import make_tiny_model


def test_teacher_moves_by_the_momentum(tiny_model: TCL) -> None:
    teacher = MomentumTeacher(tiny_model)
    student = make_tiny_model(seed=1)
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    teacher.update(student, 0.9)
    theirs = dict(student.named_parameters())
    for name, after in teacher.model.named_parameters():
        torch.testing.assert_close(after, 0.9 * before[name] + 0.1 * theirs[name], rtol=1e-5, atol=1e-6)
        assert not after.requires_grad
    assert not any(name.startswith(("itm_head", "temp")) for name, _ in teacher.model.named_parameters())


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 11), batches=st.lists(st.integers(1, 25), max_size=8))
def test_queue_equals_a_deque(size: int, batches: list[int]) -> None:
    """Any queue size against any batch size: the newest Q features, whatever the order of columns."""
    queue = FeatureQueue(2, size)
    expected = deque((tuple(column) for column in queue.image_queue.T.tolist()), maxlen=size)
    number = 0.0
    for batch in batches:
        features = torch.arange(number, number + batch)[:, None].repeat(1, 2)
        number += batch
        queue.enqueue(features, -features)
        expected.extend(tuple(row) for row in features.tolist())
        assert sorted(map(tuple, queue.image_queue.T.tolist())) == sorted(expected)
    assert int(queue.queue_ptr) == sum(batches) % size
    if number:
        newest = (int(queue.queue_ptr) - 1) % size
        assert queue.image_queue[0, newest] == number - 1 and queue.text_queue[0, newest] == 1 - number


def test_queue_starts_with_unit_features_and_takes_no_gradient() -> None:
    queue = FeatureQueue(8, 5)
    torch.testing.assert_close(queue.image_queue.norm(dim=0), torch.ones(5))
    torch.testing.assert_close(queue.text_queue.norm(dim=0), torch.ones(5))
    assert not torch.equal(queue.image_queue, queue.text_queue)
    queue.enqueue(*torch.ones(2, 3, 8, requires_grad=True))
    assert not queue.image_queue.requires_grad and not queue.text_queue.requires_grad
