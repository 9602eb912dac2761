"""Where the time of a training step goes: what is spent outside model, optimizer and loader.

    python benchmarks/overhead.py [STEPS]

Runs `tcl.training.trainer` on built-in scenes, as the command does, with a clock around each part. Prints the share of
each and of the rest, which is what the loop itself costs: logging every step, progress, random seeds, checks. On a CPU,
where every call is finished when it returns; the shares of a GPU would have to be taken from its own profiler.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tcl.config.recipe import load_recipe
from tcl.distributed.world import World
from tcl.tasks.build import build_training
from tcl.training.loop import fit


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    torch.set_num_threads(1)
    recipe = load_recipe(
        "small",
        [
            "data.train=['scenes:train:2000']",
            f"train.steps={steps}",
            "train.log_every=1",
            "train.checkpoint_every=9999",
        ],
    )
    training = build_training(recipe, World())
    seconds: dict[str, float] = {}

    def clocked(name: str, owner: Any, method: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, method, call)

    clocked("forward and backward", training, "_forward_backward")
    clocked("optimizer", training, "_update")
    clocked("teacher", training.task, "begin_step")
    clocked("queue", training.task, "end_step")
    batches = training.loader.batches

    def clocked_batches(*args: Any) -> Iterator[Any]:
        iterator = batches(*args)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            seconds["waiting for the loader"] = seconds.get("waiting for the loader", 0.0) + time.perf_counter() - began
            if batch is None:
                return
            yield batch

    training.loader.batches = clocked_batches  # type: ignore[method-assign]
    began = 0.0
    train_step = training.train_step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal began
        if training.step == 5:  # the first steps start the workers and fill caches
            seconds.clear()
            began = time.perf_counter()
        result = train_step(*args, **kwargs)
        if training.step == steps:
            total = time.perf_counter() - began
            parts = seconds | {"everything else": 0.0}
            parts["everything else"] = total - sum(parts.values())
            shares = {name: round(value / total, 4) for name, value in parts.items()}
            print(json.dumps({"steps": steps - 5, "seconds_per_step": round(total / (steps - 5), 4), "share": shares}))
        return result

    training.train_step = step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        fit(training, Path(folder) / "run")


if __name__ == "__main__":
    main()
