"""The memory that `tcl pretrain` announces, against the peak of a real run of the same settings.

python benchmarks/footprint.py [--steps 3]

Each case runs in two new processes: one measures steps of 2 and 4 samples and extrapolates; the other trains for some
steps at the full batch and reads its peak resident memory from the kernel, less what it had before the model was built.
Exits 1 when an estimate is off by more than 25 %.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tcl.config.recipe import ModelConfig, OptimConfig, TrainConfig
from tcl.machine.memory import resident_memory
from tcl.models.adapters import adapt
from tcl.models.tcl import TCL
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.pretrain import PretrainObjective
from tcl.objective.sampling import mask_tokens
from tcl.training.footprint import measure
from tcl.training.optim import build_optimizer

TOLERANCE = 0.25
VOCABULARY = 30522
SMALL: dict[str, Any] = {
    "image_encoder": "vit_small_patch16_224",
    "text_encoder_args": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "fusion_layer": 3,
}
BASE: dict[str, Any] = {}  # the published sizes
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "small": (SMALL, {}, 16),
    "small, checkpointing": (SMALL, {"activation_checkpointing": True}, 32),
    "small, LoRA": (SMALL, {"lora": ["image_encoder", "text_encoder", "fusion_encoder"]}, 16),
    "base": (BASE, {}, 8),
    "base, checkpointing": (BASE, {"activation_checkpointing": True}, 16),
    "base, frozen image encoder": (BASE, {"freeze": ["image_encoder"]}, 16),
}


def build(case: str) -> tuple[PretrainObjective, TCL, Callable[[int], None]]:
    """The objective, its model, and forward and backward of so many made-up pairs."""
    sizes, train, _ = CASES[case]
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**sizes, "pretrained": False})
    model = TCL.from_config(config, VOCABULARY)
    adapt(model, TrainConfig.model_validate(train))
    queue = FeatureQueue(config.embed_dim, 65536)
    objective = PretrainObjective(model, MomentumTeacher(model), queue).train()
    generator = torch.Generator().manual_seed(0)

    def step(size: int) -> None:
        side, length = config.image_size, config.max_length
        images = torch.randint(256, (2, size, 3, side, side), dtype=torch.uint8, generator=generator)
        input_ids = torch.randint(5, VOCABULARY, (size, length), generator=generator)
        mask = torch.ones(size, length, dtype=torch.bool)
        masked = mask_tokens(
            input_ids, mask, cls_id=2, mask_id=4, vocab_size=VOCABULARY, probability=0.15, generator=generator
        )
        losses, *_ = objective(*images, input_ids, mask, masked, 0.4, generator)
        losses.total.backward()

    return objective, model, step


def estimate(case: str) -> float:
    """Bytes by the estimate."""
    objective, model, step = build(case)
    return measure(step, model, [objective.teacher, objective.queue]).peak(CASES[case][2])


def actual(case: str, steps: int) -> float:
    """Bytes of a real run."""
    nn.Linear(8, 8)(torch.ones(8, 8)).sum().backward()  # what torch loads once does not belong to the model
    before = resident_memory()
    objective, model, step = build(case)
    optimizer = build_optimizer(model, OptimConfig())
    for _ in range(steps):
        objective.teacher.update(model, 0.995)
        step(CASES[case][2])
        optimizer.step()
        optimizer.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def in_new_process(part: str, case: str, steps: int) -> float:
    """Bytes that `part` of this script finds, in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--case", case, "--steps", str(steps)]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="of the real run")
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--part", choices=("estimate", "actual"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        found = estimate(arguments.case) if arguments.part == "estimate" else actual(arguments.case, arguments.steps)
        print(json.dumps(found))
        return
    worst = 0.0
    print(f"{'case':<30}{'batch':>6}{'estimated':>12}{'real':>10}{'error':>9}")
    for case in [arguments.case] if arguments.case else CASES:
        expected, real = (in_new_process(part, case, arguments.steps) for part in ("estimate", "actual"))
        error = expected / real - 1
        worst = max(worst, abs(error))
        print(f"{case:<30}{CASES[case][2]:>6}{expected / 1e9:>9.2f} GB{real / 1e9:>7.2f} GB{error:>+9.1%}", flush=True)
    if worst > TOLERANCE:
        sys.exit(f"an estimate is off by {worst:.0%}")


if __name__ == "__main__":
    main()
