"""Mutation testing: the code is changed in one place after the other, and some test must notice each time.

    python tests/mutation/run.py [FILE ...]

`files.toml` says which files, and which tests for each; `accepted.txt` lists the mutants that no test need notice.
Results are kept in `.mutants/`, so an interrupted run goes on where it was: a mutant stays noticed while its file is
the same, and one that survived is tried again when its tests change.

This process imports the heavy packages once and forks for each mutant. The child gets the mutated module through an
import hook, so no file changes, and runs the tests that reach the mutated statement.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import json
import os
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # forking is safe where nothing has started a thread
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

import pytest
from forks import Child, Reach, run_children
from mutations import Mutant, mutants

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / ".mutants"
REQUIRED_SCORE = 0.9
HEAVY = (
    "coverage fsspec hypothesis.strategies numpy PIL.JpegImagePlugin pyarrow pydantic pytest_timeout rich.console safetensors.torch timm "
    "tokenizers torch torchvision.transforms.v2 transformers typer"
)


class File:
    """A file of the product, its tests, and what is known about its mutants."""

    def __init__(self, name: str, tests: list[str]) -> None:
        self.name, self.path = name, ROOT / name
        self.source = self.path.read_text(encoding="utf-8")
        self.tests = [f"tests/{test}" for test in tests]
        support = [ROOT / test for test in self.tests] + sorted((ROOT / "tests").rglob("conftest.py"))
        self.tests_hash = short_hash(*(path.read_text(encoding="utf-8") for path in support))
        stem = RESULTS / name.removesuffix(".py").replace("/", ".")
        self.journal, self.reach_file = (
            stem.with_suffix(stem.suffix + ".jsonl"),
            stem.with_suffix(stem.suffix + ".json"),
        )
        self.known: dict[str, dict[str, Any]] = {}
        if self.journal.exists():
            for line in self.journal.read_text(encoding="utf-8").splitlines():
                self.known[json.loads(line)["id"]] = json.loads(line)
        self.mutants = list(mutants(self.source))
        self.statements = statement_lines(self.source)

    def outcome(self, mutant: Mutant) -> dict[str, Any] | None:
        known = self.known.get(short_hash(mutant.code))
        return known if known and (known["outcome"] != "survived" or known["tests"] == self.tests_hash) else None

    def record(self, mutant: Mutant, outcome: str, seconds: float, by: str) -> None:
        entry = {"id": short_hash(mutant.code), "outcome": outcome, "tests": self.tests_hash}
        entry |= {"seconds": round(seconds, 1), "by": by, "place": f"{mutant.line} {mutant.operator}"}
        self.known[entry["id"]] = entry
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def reach(self) -> dict[str, Any]:
        """Which tests reach which line, from a run without mutation; empty when there was none of this version."""
        reach = json.loads(self.reach_file.read_text(encoding="utf-8")) if self.reach_file.exists() else {}
        return reach if reach.get("version") == short_hash(self.source, self.tests_hash) else {}

    def selected(self, mutant: Mutant, reach: dict[str, Any]) -> list[str]:
        lines = self.statements.get(mutant.line, range(mutant.line, mutant.line + 1))
        reaching = {test for line in lines for test in reach["lines"].get(str(line), ())}
        everything = not reaching or "" in reaching  # an import, a shared fixture, another process
        return [test for test in reach["seconds"] if everything or test in reaching]


def statement_lines(source: str) -> dict[int, range]:
    """The lines of the statement, or of the head of the compound statement, that a line belongs to."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(body[0].lineno - 1, node.lineno) if body else node.end_lineno or node.lineno
            found |= dict.fromkeys(range(node.lineno, last + 1), range(node.lineno, last + 1))
    return found


def short_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def accepted() -> set[tuple[str, ...]]:
    """Function, lines before and lines after of each mutant in `accepted.txt`; `#` starts a reason."""
    blocks = (HERE / "accepted.txt").read_text(encoding="utf-8").split("\n\n")
    lines = [tuple(line for line in block.splitlines() if not line.startswith("#")) for block in blocks]
    return {block for block in lines if block}


def measure_reach(files: list[File], at_once: int) -> None:
    """Run the tests of each file once, without a mutant."""
    runs = [
        (file, Child(ROOT, file.path, file.source, file.tests, seconds=1200, reach=file.reach_file))
        for file in files
        if not file.reach
    ]
    for file, code, _, output in run_children(runs, at_once):
        if code not in (0, 1):
            raise SystemExit(f"{file.name}: its tests do not run without a mutant\n{output}")
        reach = json.loads(file.reach_file.read_text(encoding="utf-8"))
        version = {"version": short_hash(file.source, file.tests_hash)}
        file.reach_file.write_text(json.dumps(reach | version), encoding="utf-8")
        for test in reach["failed"]:
            print(f"left out, for it fails without a mutant: {test}")
        print(f"{file.name}: {sum(reach['seconds'].values()):.0f} s of tests", flush=True)


def try_mutants(files: list[File], at_once: int) -> None:
    def runs() -> Iterator[tuple[tuple[File, Mutant], Child]]:
        for file in files:
            reach = file.reach
            for mutant in file.mutants:
                if file.outcome(mutant) is None:
                    tests = file.selected(mutant, reach)
                    seconds = 15 + 4 * sum(reach["seconds"][test] for test in tests)
                    yield (file, mutant), Child(ROOT, file.path, mutant.code, tests, seconds)

    total, done, start = sum(file.outcome(m) is None for file in files for m in file.mutants), 0, time.monotonic()
    for (file, mutant), code, seconds, output in run_children(runs(), at_once):
        outcome = "survived" if code == 0 else "killed" if code > 0 else "timed out"
        failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        file.record(mutant, outcome, seconds, failures[-1][:200] if failures else "")
        done += 1
        if done % 20 == 0 or done == total:
            print(f"{done} of {total}, {(time.monotonic() - start) / done:.1f} s each, {file.name}", flush=True)


def report(files: list[File]) -> bool:
    """Print scores and survivors; whether all is well."""
    allowed, seen, good = accepted(), set(), True
    for file in files:
        alive = [m for m in file.mutants if (file.outcome(m) or {"outcome": "survived"})["outcome"] == "survived"]
        unexpected = [mutant for mutant in alive if mutant.identity not in allowed]
        seen |= {mutant.identity for mutant in alive}
        counted = len(file.mutants) - len(alive) + len(unexpected)
        score = 1 - len(unexpected) / max(counted, 1)
        good &= not unexpected and score >= REQUIRED_SCORE
        for mutant in unexpected:
            print(f"\n{file.name}:{mutant.line} survived, by {mutant.operator}", *mutant.identity, sep="\n")
        print(f"\n{file.name}: {score:.1%} of {counted}, {len(alive) - len(unexpected)} accepted")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of the product; all of files.toml when left out")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--count", action="store_true", help="count the mutants, run nothing")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    RESULTS.mkdir(exist_ok=True)
    table = tomllib.loads((HERE / "files.toml").read_text(encoding="utf-8"))
    files = [File(name, table[name]) for name in arguments.files or table]
    if arguments.count:
        print(*(f"{file.name}: {len(file.mutants)}" for file in files), sep="\n")
        print(f"together: {sum(len(file.mutants) for file in files)}")
        return
    for package in HEAVY.split():
        importlib.import_module(package)
    pytest.main(["--version"])  # imports its plug-ins
    gc.collect()
    gc.freeze()
    measure_reach(files, arguments.jobs)
    try_mutants(files, arguments.jobs)
    sys.exit(0 if report(files) else 1)


if __name__ == "__main__":
    main()
