"""The estimate of memory and time before the first step, against what a step then takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tcl.config.recipe import TrainConfig
from tcl.errors import ConfigError
from tcl.machine.memory import available_memory, format_bytes, free_memory, memory_budget, resident_memory
from tcl.models.adapters import adapt
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.training.footprint import HEAP, TIMED_SAMPLES, Footprint, _LiveMemory, largest_batch, measure, time_at
from tests.conftest import make_tiny_model
from tests.models.test_adapt import whole_loss

CPU = torch.device("cpu")
GB = 10**9
EXAMPLE = Footprint(
    weight_bytes=2 * GB,
    trained_bytes=GB,
    beside_bytes=GB,
    step_bytes=GB // 2,
    sample_bytes=GB // 10,
    timed_batch=4,
    seconds=2.0,
)


def test_live_memory_follows_allocations_views_and_backward() -> None:
    with _LiveMemory() as memory:
        x = torch.zeros(1000)
        view = x.view(10, 100)
        x.add_(1)
        assert (memory.now, memory.peak) == (4000, 4000)
        y = x * 2
        del y
        z = view + 1
        assert (memory.now, memory.peak) == (8000, 8000)
        del x, view, z
        assert memory.now == 0
    weight = torch.ones(1000, requires_grad=True)
    with _LiveMemory() as memory:
        y = weight.exp().sin().sum()  # keeps the results of exp
        assert memory.now == 4000 + 4
        y.backward()
        assert memory.now == 4000 + 4  # the gradient, and y
        assert 12000 <= memory.peak < 12100


def test_a_linear_layer_takes_what_it_must() -> None:
    """Weights, gradients and optimizer, and per sample the activations that its backward pass reads."""
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    beside = nn.Linear(3, 1)
    beside.weight = model[2].weight  # shared with the model

    def step(size: int) -> None:
        model(torch.ones(size, 100)).sum().backward()

    footprint = measure(step, model, [beside], batch_sizes=(64, 256))
    weights = 4 * (100 * 50 + 50 + 50 * 10 + 10)
    assert footprint.weight_bytes == footprint.trained_bytes == weights
    assert footprint.beside_bytes == 4
    assert 4 * (100 + 50 + 50) <= footprint.sample_bytes / HEAP <= 4 * (100 + 3 * 50 + 2 * 10)
    assert footprint.fixed_bytes == pytest.approx(4 * weights + 4, abs=weights)
    assert footprint.timed_batch == 256 and footprint.seconds > 0


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(activation_checkpointing=True),
        TrainConfig(freeze=["image_encoder"], lora=["text_encoder"], lora_rank=2),
    ],
)
def test_the_estimate_is_what_a_larger_batch_takes(config: TrainConfig) -> None:
    """Here in tensors; `benchmarks/footprint.py` compares with the memory of real processes."""
    model = make_tiny_model().train()
    adapt(model, config)
    footprint = measure(lambda size: whole_loss(model, size).backward(), model, [MomentumTeacher(model)])
    with _LiveMemory() as memory:
        whole_loss(model, 24).backward()
    actual = HEAP * memory.peak + footprint.weight_bytes + footprint.beside_bytes + 2 * footprint.trained_bytes
    assert footprint.peak(24) == pytest.approx(actual, rel=0.25)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert footprint.trained_bytes == trained <= footprint.weight_bytes


def test_frozen_and_checkpointed_models_are_seen_to_take_less() -> None:
    def footprint(config: TrainConfig) -> Footprint:
        model = make_tiny_model().train()
        adapt(model, config)
        return measure(lambda size: whole_loss(model, size).backward(), model)

    plain = footprint(TrainConfig())
    checkpointed = footprint(TrainConfig(activation_checkpointing=True))
    frozen = footprint(TrainConfig(freeze=["image_encoder", "text_encoder", "fusion_encoder"]))
    assert checkpointed.sample_bytes < plain.sample_bytes and checkpointed.fixed_bytes < 1.2 * plain.fixed_bytes
    assert frozen.trained_bytes < plain.trained_bytes / 4 and frozen.peak(8) < plain.peak(8) / 2


def test_measuring_leaves_no_trace() -> None:
    model = make_tiny_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    queue = FeatureQueue(4, 8)
    random_state = torch.get_rng_state()
    measure(lambda size: whole_loss(model, size).backward(), model, [queue])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_peak_adds_up_and_is_described() -> None:
    assert EXAMPLE.peak(10) == 2 * GB + GB + 3 * GB + GB // 2 + GB
    memory, time = EXAMPLE.describe(batch_size=10, samples=7200, processes=2)
    assert memory == (
        "Memory     7.5 GB estimated at batch 10: weights 2.0 GB, teacher and queues 1.0 GB, gradients 1.0 GB, "
        "optimizer 2.0 GB, activations 1.5 GB"
    )
    assert time == "Time       4 pairs/s measured at batch 4: 30.0 minutes for an epoch of 7,200 pairs"
    small = replace(EXAMPLE, beside_bytes=0, weight_bytes=160_000).describe(1, 1, rows="questions")
    assert "teacher" not in small[0] and "weights 160.0 kB" in small[0]
    assert small[1] == "Time       2 questions/s measured at batch 4: 0.5 s for an epoch of 1 questions"


@pytest.mark.parametrize(("batch_size", "timed"), [(1, 1), (4, 4), (16, 16), (1000, TIMED_SAMPLES)])
def test_time_is_that_of_the_batch_that_is_trained(batch_size: int, timed: int) -> None:
    model, sizes = nn.Linear(100, 100), []

    def step(size: int) -> None:
        sizes.append(size)
        model(torch.ones(size, 100)).sum().backward()

    quick = replace(EXAMPLE, seconds=1e-3)
    found = time_at(quick, step, model, batch_size, budget=1e12)
    assert found.timed_batch == timed and sizes == [timed] * (0 if timed == 4 else 2)
    assert found.peak(9) == quick.peak(9) and (timed == 4) == (found.seconds == quick.seconds)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_that_is_too_slow_or_too_large_to_try_is_not_timed() -> None:
    def step(size: int) -> None:
        raise AssertionError(size)

    model = nn.Linear(1, 1)
    assert time_at(replace(EXAMPLE, seconds=4.0), step, model, 16, budget=1e12).timed_batch == 4
    quick = replace(EXAMPLE, seconds=1e-3)
    assert time_at(quick, step, model, 16, budget=quick.peak(16) - 1).timed_batch == 4
    on_a_gpu = replace(quick, timed_batch=256)  # measured as it will be trained
    assert time_at(on_a_gpu, step, model, 256, budget=1e12) is on_a_gpu


@pytest.mark.parametrize(("left", "expected"), [(0.1, 1), (0.75, 7), (0.8, 8), (1.59, 8), (1.6, 16), (1e6, 4096)])
def test_the_largest_batch_is_one_that_fits(left: float, expected: int) -> None:
    budget = EXAMPLE.fixed_bytes + left * GB + 1
    assert largest_batch(EXAMPLE, budget) == expected
    assert EXAMPLE.peak(expected) <= budget


def test_a_model_that_does_not_fit_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"a batch of 1 needs 6\.6 GB, and there are 6\.5 GB to use") as error:
        largest_batch(EXAMPLE, EXAMPLE.fixed_bytes)
    assert "activation_checkpointing" in str(error.value.hint)


def test_memory_of_this_machine() -> None:
    assert 10**7 < resident_memory() < available_memory(CPU)
    assert memory_budget(CPU) == pytest.approx(0.7 * available_memory(CPU), rel=0.1)
    assert available_memory(CPU, processes=4) < available_memory(CPU)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       32000000 kB\nMemAvailable:   16000000 kB\nHugePages_Total:       0\n"}
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16_000_000 * 1024),
        (  # version 2: the job's own limit, of which cached files can be had back
            {
                "proc/self/cgroup": "0::/slurm/job_7\n",
                f"{V2}/slurm/job_7/memory.max": "8000000000\n",
                f"{V2}/slurm/job_7/memory.current": "3000000000\n",
                f"{V2}/slurm/job_7/memory.stat": "anon 1000000000\ninactive_file 1500000000\n",
            },
            6_500_000_000,
        ),
        (  # a limit of a group around it
            {
                "proc/self/cgroup": "0::/slurm/job_7\n",
                f"{V2}/slurm/job_7/memory.max": "max\n",
                f"{V2}/slurm/job_7/memory.current": "1\n",
                f"{V2}/slurm/job_7/memory.stat": "inactive_file 0\n",
                f"{V2}/slurm/memory.max": "4000\n",
                f"{V2}/slurm/memory.current": "1000\n",
                f"{V2}/slurm/memory.stat": "inactive_file 0\n",
            },
            3000,
        ),
        (  # version 1 in a container, which sees its own group as the outermost
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
                f"{V1}/memory.limit_in_bytes": "5000\n",
                f"{V1}/memory.usage_in_bytes": "4000\n",
                f"{V1}/memory.stat": "inactive_file 7\ntotal_inactive_file 500\n",
            },
            1500,
        ),
        (  # over its limit
            {
                "proc/self/cgroup": "4:memory:/\n",
                f"{V1}/memory.limit_in_bytes": "5000\n",
                f"{V1}/memory.usage_in_bytes": "6000\n",
                f"{V1}/memory.stat": "total_inactive_file 0\n",
            },
            0,
        ),
    ],
)
def test_control_groups_limit_the_memory(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert free_memory(write(tmp_path, MEMINFO | files)) == expected


def test_sizes_as_people_read_them() -> None:
    sizes = [format_bytes(number) for number in (0, 999, 1500, 2e6, 3.25e9, 4e15)]
    assert sizes == ["0 B", "999 B", "1.5 kB", "2.0 MB", "3.2 GB", "4000.0 TB"]
