"""What `tcl embed` says while it works, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tcl_cli._console import Advance, counted
from tcl_cli._console import out as console

if TYPE_CHECKING:
    from tcl.data.inputs.listing import Inputs
    from tcl.embedding.output import Output
    from tcl.embedding.plan import EncoderFacts
    from tcl.embedding.run import EmbedReport


@contextmanager
def show_progress(inputs: Inputs, facts: EncoderFacts, done: int, state: Callable[[], str]) -> Iterator[Advance]:
    """Say what is about to be done, show its progress, and on Ctrl-C how to go on."""
    if facts.unverified:
        say_unverified(facts.unverified)
    console.message(f"{counted(len(inputs), f'{inputs.kind}s')} with model {facts.model_hash[:12]} on {facts.backend}")
    if done:
        console.message(f"Continuing: {state()}")
    try:
        with console.progress("Embedding", len(inputs), initial=done) as advance:
            yield advance
    except KeyboardInterrupt:
        console.message(f"{state()}; the same command goes on")
        raise


def print_report(report: EmbedReport, output: Output, table: bool) -> None:
    """Say what was done and what was slow."""
    from tcl.vectors.files import sidecar

    if report.bottleneck:
        rates = ", ".join(f"{stage} {rate:.0f}/s" for stage, rate in report.rates.items())
        now = f", {counted(report.resumed, 'inputs')} done before" if report.resumed else ""
        console.message(
            f"{counted(report.count, 'vectors')}{now}, in {report.seconds:.1f} s with opening the model; "
            f"each stage by itself: {rates}; the bottleneck is {report.bottleneck}"
        )
    if report.recall_at_10 is not None:
        console.message(
            f"recall@10 of these vectors against float32: {report.recall_at_10:.4f}, "
            f"{100 * (1 - report.recall_at_10):.2f} % lost"
        )
    if report.failed:
        errors = output.path / "part-*.errors.jsonl" if output.parts else sidecar(output.path, "errors.jsonl")
        console.warning(f"{counted(report.failed, 'inputs')} could not be read; see {errors}")
    if table:
        for line in profile_lines(report):
            console.message(line)


def profile_lines(report: EmbedReport) -> list[str]:
    """The stages as a table for people; the slowest one is marked."""
    lines = [f"{'stage':<16}{'threads':>8}{'busy s':>10}{'inputs/s':>12}"]
    for stage in report.stages:
        mark = "  <- bottleneck" if stage["stage"] == report.bottleneck else ""
        lines.append(f"{stage['stage']:<16}{stage['threads']:>8}{stage['seconds']:>10.2f}{stage['rate']:>12.1f}{mark}")
    return lines


def say_unverified(folder: object) -> None:
    """Say that numbers of a bundle were not verified."""
    console.warning(f"{folder} is marked unverified: its vectors may differ from the model's")
