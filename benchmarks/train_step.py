"""Time and memory of a pre-training step against a plain transcription of the published formulas (`plain.py`).

python benchmarks/train_step.py [--rounds 3] [--out benchmarks/results/train_step.json]
python benchmarks/train_step.py --lmi       # local mutual information alone: 1,024 samples of 24 words
python benchmarks/train_step.py --cuda      # our step alone on a GPU: bf16, batch 64, and what share of it is used

ViT-B/16 and BERT-base at 256 pixels, float32, batch 8, captions of 8 to 25 tokens, a queue of 65,536, dropout on; both
sides start from the same weights and see the same batch. A step is: teacher, losses, backward, AdamW, queue. Each side
runs in its own process, in turn, on one thread.

Time is the CPU time of the process, which other load disturbs less than the clock; the figure is the median of the
ratios of neighbouring rounds. Memory is counted from the allocations and releases that torch's profiler records in one
step, the gradients being allocated before: the highest sum is what a step needs above parameters, gradients, teacher
and optimizer state.

With --cuda, model FLOP utilisation is the multiplications and additions of the matrix products that the method needs
(`flops_per_pair`: three times the forward pass for what is trained, once for the teacher, nothing for what is computed
again) over the time and the peak of the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain import IGNORED, PlainObjective, local_mutual_information, move_teacher
from report import environment, write

from tcl.config.recipe import ModelConfig, OptimConfig
from tcl.machine.memory import keep_freed_memory
from tcl.models.tcl import TCL
from tcl.objective.losses import lmi_loss
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.pretrain import PretrainObjective
from tcl.objective.sampling import MaskedTokens, mask_tokens
from tcl.training.optim import build_optimizer

VOCABULARY, LENGTH, ALPHA, MOMENTUM = 30522, 25, 0.4, 0.995
WANTED = {"step": {"time": 0.8, "memory": 0.6}, "lmi": {"time": 0.2, "memory": 0.05}}


class Setup:
    """Model, teacher, queue and one batch; the same in every process."""

    def __init__(self, batch_size: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        model = TCL.from_config(ModelConfig(pretrained=False), VOCABULARY).to(device).train()
        self.model, self.teacher = model, MomentumTeacher(model).train()
        self.queue = FeatureQueue(256, 65536).to(device)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (2, batch_size, 3, 256, 256), dtype=torch.uint8, generator=generator)
        ids = torch.randint(1000, VOCABULARY, (batch_size, LENGTH), generator=generator)
        lengths = torch.randint(8, LENGTH + 1, (batch_size, 1), generator=generator)
        lengths[0] = LENGTH
        mask = torch.arange(LENGTH) < lengths
        masked = mask_tokens(
            ids, mask, cls_id=101, mask_id=103, vocab_size=VOCABULARY, probability=0.15, generator=generator
        )
        self.images, self.ids, self.mask = images.to(device), ids.to(device), mask.to(device)
        self.masked = MaskedTokens(*(tensor.to(device) for tensor in masked))


def our_step(setup: Setup) -> Callable[[], None]:
    """What `tcl pretrain` does with a batch."""
    keep_freed_memory()
    objective = PretrainObjective(setup.model, setup.teacher, setup.queue)
    optimizer = build_optimizer(setup.model, OptimConfig())

    def step() -> None:
        setup.teacher.update(setup.model, MOMENTUM)
        losses, *features = objective(*setup.images, setup.ids, setup.mask, setup.masked, ALPHA)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        setup.queue.enqueue(*features)

    return step


def plain_step(setup: Setup) -> Callable[[], None]:
    """The same by `plain.py`, with torch's optimizer as it comes."""
    objective = PlainObjective(setup.model, setup.teacher, setup.queue)
    optimizer = torch.optim.AdamW(setup.model.parameters(), lr=1e-5, weight_decay=0.02)
    labels = torch.full_like(setup.ids, IGNORED)
    labels.view(-1)[setup.masked.positions] = setup.masked.labels
    images = [setup.model.normalise_pixels(view) for view in setup.images]

    def step() -> None:
        move_teacher(setup.model, setup.teacher.model, MOMENTUM)
        losses, *features = objective(*images, setup.ids, setup.mask, setup.masked.input_ids, labels, ALPHA)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        setup.queue.enqueue(*features)

    return step


def lmi_step(side: str) -> Callable[[], None]:
    """Local mutual information alone, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    local = F.normalize(torch.randn(1024, 24, 256, generator=generator), dim=-1)
    anchor = F.normalize(torch.randn(1024, 256, generator=generator), dim=-1).requires_grad_()
    mask = torch.arange(24) < torch.randint(7, 25, (1024, 1), generator=generator)
    temperature = torch.tensor(0.07, requires_grad=True)

    def step() -> None:
        if side == "ours":
            loss = lmi_loss(anchor, local, temperature, mask)
        else:
            loss = local_mutual_information(local, anchor, temperature, mask)
        torch.autograd.grad(loss, (anchor, temperature))

    return step


# --- the measurement ---------------------------------------------------------------------------------------------


def peak_bytes(step: Callable[[], None], before: Callable[[], None] = lambda: None) -> int:
    """Most bytes of tensors that a step, preceded by `before`, holds at one time above what it finds.

    Two steps are recorded and the second counts: the profiler does not know the size of what was allocated before.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
        before()
        with torch.profiler.record_function("counted step"):
            step()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    started = next(event.start_ns() for event in events if event.name() == "counted step")
    held = highest = 0
    for event in events:
        if event.name() == "[memory]" and event.start_ns() >= started:
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def measure(side: str, what: str, steps: int) -> dict[str, float]:
    """One side, in this process: CPU seconds and peak bytes of a step."""
    torch.set_num_threads(1)
    if what == "lmi":
        step = lmi_step(side)
    else:
        setup = Setup(batch_size=8)
        step = (our_step if side == "ours" else plain_step)(setup)
    step()  # the first one allocates the optimizer state
    seconds = []
    for _ in range(steps):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    if what == "lmi":
        peak = peak_bytes(step)
    else:
        peak = peak_bytes(step, lambda: allocate_gradients(setup.model))
    return {"seconds": statistics.median(seconds), "megabytes": peak / 1e6}


def allocate_gradients(model: TCL) -> None:
    """So that they do not count as memory of the step."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def compare(what: str, rounds: int, steps: int) -> dict[str, Any]:
    """Both sides in turn, each in a process of its own."""
    results: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for number in range(rounds):
        for side in results:
            command = [sys.executable, __file__, "--side", side, "--steps", str(steps)] + ["--lmi"] * (what == "lmi")
            output = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
            ).stdout
            results[side].append(json.loads(output))
            print(f"round {number + 1}, {side}: {output.strip()}", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {"rounds": rounds, "wanted": WANTED[what]}
    for name, key in (("time", "seconds"), ("memory", "megabytes")):
        pairs = list(zip(results["ours"], results["plain"], strict=True))
        figures[name] = {
            "ratio": round(statistics.median(ours[key] / plain[key] for ours, plain in pairs), 3),
            f"ours_{key}": round(statistics.median(ours[key] for ours, _ in pairs), 2),
            f"plain_{key}": round(statistics.median(plain[key] for _, plain in pairs), 2),
        }
    return figures


# --- on a GPU ----------------------------------------------------------------------------------------------------


def flops_per_pair(
    masked_words: float, side: int = 256, patch: int = 16, width: int = 768, length: int = LENGTH
) -> float:
    """Floating-point operations of the matrix products that the method needs for one pair.

    Per layer and token: 12 D^2 multiply-adds of weights and 2 N D of attention over N tokens. A fusion layer adds two
    projections (2 D^2) and attention to the image tokens; keys and values of an image (2 D^2 per image token) count
    once per layer. The text encoder reads the caption and its masked copy, the fusion encoder four rows of text for the
    model (pair, two negatives, masked) and one for the teacher.
    """
    patches = (side // patch) ** 2
    tokens = patches + 1
    image = patches * 3 * patch**2 * width + 12 * tokens * (12 * width**2 + 2 * tokens * width)
    text = 6 * length * (12 * width**2 + 2 * length * width)
    fusion = text + 6 * length * (2 * width**2 + 2 * tokens * width)
    keys = 6 * tokens * 2 * width**2
    words = masked_words * (width**2 + width * VOCABULARY)
    trained = image + 2 * text + keys + 4 * fusion + words
    taught = image + 2 * text + keys + fusion + words
    return 2.0 * (3 * trained + taught)


def measure_gpu(device: str, batch_size: int, steps: int, peak_tflops: float) -> dict[str, Any]:
    """Our step in bf16 on a synthetic batch."""
    setup = Setup(batch_size, device)
    update = our_step(setup)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            update()

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / steps
    flops = flops_per_pair(len(setup.masked.labels) / batch_size) * batch_size
    return {
        "batch_size": batch_size,
        "pairs_per_s": round(batch_size / seconds, 1),
        "milliseconds": round(seconds * 1000, 2),
        "tflops": round(flops / seconds / 1e12, 1),
        "model_flop_utilisation": round(flops / seconds / (peak_tflops * 1e12), 3),
        "peak_gibibytes": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "wanted": {"pairs_per_s": 1400, "peak_gibibytes": 16},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps per round, after one to warm up")
    parser.add_argument("--lmi", action="store_true", help="local mutual information alone")
    parser.add_argument("--cuda", action="store_true", help="our step on a GPU")
    parser.add_argument("--batch-size", type=int, default=64, help="with --cuda")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU in bf16; 989 is an H100 or H200")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    what = "lmi" if arguments.lmi else "step"
    if arguments.side:
        print(json.dumps(measure(arguments.side, what, arguments.steps)))
    elif arguments.cuda:
        if not torch.cuda.is_available():
            sys.exit("there is no GPU here")
        gpu = measure_gpu("cuda", arguments.batch_size, max(arguments.steps, 20), arguments.peak_tflops)
        write({**environment(), "cuda": gpu}, arguments.out)
    else:
        write({**environment(), what: compare(what, arguments.rounds, arguments.steps)}, arguments.out)


if __name__ == "__main__":
    main()
