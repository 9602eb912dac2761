"""Mutation testing: the code is changed in one place after the other, and each time some test must notice.

    python tests/mutation/run.py [FILE ...]

`files.toml` says which files, and which tests for each; `accepted.txt` lists the mutants that no test need notice.
Results are kept in `.mutants/`, so an interrupted run goes on where it was: a mutant stays noticed while its file is
the same, and one that survived is tried again when its tests have changed.

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
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # forking is safe where nothing has started a thread
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

import hypothesis
import pytest
from forks import ROOT, Run, run_all
from mutations import Mutant, mutants

HERE, RESULTS = Path(__file__).parent, ROOT / ".mutants"
REQUIRED_SCORE = 0.9
LIKELY = 4  # tests that are tried first
HEAVY = (
    "fsspec hypothesis.strategies numpy PIL.JpegImagePlugin pyarrow pydantic pytest_timeout rich.console "
    "safetensors.torch timm tokenizers torch torchvision.transforms.v2 transformers typer"
)


class File:
    """A file of the product, its tests, and what is known about its mutants."""

    def __init__(self, name: str, tests: list[str]) -> None:
        self.name, self.path, self.tests = name, ROOT / name, [f"tests/{test}" for test in tests]
        self.source = self.path.read_text(encoding="utf-8")
        helpers = (path for path in sorted((ROOT / "tests").rglob("*.py")) if not path.name.startswith("test_"))
        read = [ROOT / test for test in self.tests] + [path for path in helpers if path.parent != HERE]
        self.tests_hash = short_hash(*(path.read_text(encoding="utf-8") for path in read))
        stem = name.removesuffix(".py").replace("/", ".")
        self.journal, self.reach_file = RESULTS / f"{stem}.jsonl", RESULTS / f"{stem}.reach.json"
        lines = self.journal.read_text(encoding="utf-8").splitlines() if self.journal.exists() else ()
        self.known = {entry["id"]: entry for entry in map(json.loads, lines)}
        self.mutants = list(mutants(self.source))
        self.statements = statement_lines(self.source)

    def outcome(self, mutant: Mutant) -> str | None:
        known = self.known.get(short_hash(mutant.code), {"outcome": None})
        return None if known["outcome"] == "survived" and known["tests"] != self.tests_hash else known["outcome"]

    def record(self, mutant: Mutant, outcome: str, seconds: float, by: str) -> None:
        entry = {"id": short_hash(mutant.code), "outcome": outcome, "tests": self.tests_hash}
        entry |= {"seconds": round(seconds, 1), "by": by, "line": mutant.line, "operator": mutant.operator}
        self.known[entry["id"]] = entry
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def reach(self) -> dict[str, Any]:
        """Which tests reach which line, from a run without mutation; empty when there was none of this version."""
        reach = json.loads(self.reach_file.read_text(encoding="utf-8")) if self.reach_file.exists() else {}
        return reach if reach.get("version") == short_hash(self.source, self.tests_hash) else {}

    def selected(self, mutant: Mutant, reach: dict[str, Any]) -> list[str]:
        """The tests that reach its statement: first those that noticed the mutants before it, then the quick ones.

        All tests where none is known to reach it, as of imports.
        """
        lines = self.statements.get(mutant.line, [mutant.line])
        reaching = {test for line in lines for test in reach["lines"].get(str(line), ())}
        seconds = reach["seconds"]
        tests = [test for test in seconds if not reaching or "" in reaching or test in reaching]
        files = [list(group) for _, group in groupby(tests, lambda test: test.partition("::")[0])]
        files.sort(key=lambda group: fmean(seconds[test] for test in group))  # not mixed, for what they share
        ordered = [test for group in files for test in sorted(group, key=seconds.__getitem__)]
        noticed = (entry["by"].partition(" ")[2].partition(" - ")[0] for entry in reversed(self.known.values()))
        likely = list(islice(dict.fromkeys(test for test in noticed if test in ordered), LIKELY))
        return [*likely, *(test for test in ordered if test not in likely)]


def statement_lines(source: str) -> dict[int, range]:
    """For a line, the lines of its statement; of a compound one, those of its head."""
    found = dict[int, range]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(body[0].lineno - 1, node.lineno) if body else node.end_lineno or node.lineno
            lines = range(node.lineno, last + 1)
            found |= dict.fromkeys(lines, lines)
    return found


def short_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def measure_reach(files: list[File], jobs: int) -> None:
    runs = [
        (file, Run(file.path, file.source, file.tests, 1200, reach=file.reach_file)) for file in files if not file.reach
    ]
    for file, code, _, output in run_all(runs, jobs):
        if code:
            raise SystemExit(f"{file.name}: its tests do not run without a mutant\n{output}")
        reach = json.loads(file.reach_file.read_text(encoding="utf-8"))
        reach["version"] = short_hash(file.source, file.tests_hash)
        file.reach_file.write_text(json.dumps(reach), encoding="utf-8")
        print(f"{file.name}: {len(file.mutants)} mutants, {sum(reach['seconds'].values()):.0f} s of tests", flush=True)
        for test in reach["failed"]:
            print(f"    left out, for it fails without a mutant: {test}")


def untried(files: list[File]) -> Iterator[tuple[tuple[File, Mutant], Run]]:
    for file in files:
        reach = file.reach
        for mutant in file.mutants:
            if file.outcome(mutant) is None:
                tests = file.selected(mutant, reach)
                limits = {test: 15 + 8 * reach["seconds"][test] for test in tests}
                seconds = 15 + 4 * sum(reach["seconds"][test] for test in tests)
                yield (file, mutant), Run(file.path, mutant.code, tests, seconds, limits)


def try_mutants(files: list[File], jobs: int) -> None:
    total, start = sum(file.outcome(mutant) is None for file in files for mutant in file.mutants), time.monotonic()
    for done, ((file, mutant), code, seconds, output) in enumerate(run_all(untried(files), jobs), 1):
        failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        outcome = "survived" if code == 0 else "noticed" if code > 0 else "ended"  # out of time, of memory, or crashed
        file.record(mutant, outcome, seconds, failures[-1][:200] if failures else "")
        if done % 20 == 0 or done == total:
            print(f"{done} of {total}, {(time.monotonic() - start) / done:.1f} s each, {file.name}", flush=True)


def accepted() -> set[tuple[str, ...]]:
    """Function, lines before and lines after of each mutant in `accepted.txt`; `#` starts a reason."""
    blocks = (HERE / "accepted.txt").read_text(encoding="utf-8").split("\n\n")
    return {tuple(line for line in block.strip().splitlines() if not line.startswith("#")) for block in blocks}


def report(files: list[File]) -> bool:
    """Print the survivors and the scores; whether all is well."""
    allowed, good = accepted(), True
    for file in files:
        alive = [mutant for mutant in file.mutants if file.outcome(mutant) == "survived"]
        missed = [mutant for mutant in alive if mutant.identity not in allowed]
        for mutant in missed:
            print(f"\n{file.name}:{mutant.line} survived, by {mutant.operator}", *mutant.identity, sep="\n")
        counted = len(file.mutants) - len(alive) + len(missed)
        score = 1 - len(missed) / max(counted, 1)
        print(f"\n{file.name}: {score:.1%} of {counted} noticed, {len(alive) - len(missed)} accepted", flush=True)
        good &= not missed and score >= REQUIRED_SCORE
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
    hypothesis.settings.load_profile("default")
    hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no mutant noticed
    hypothesis.settings.load_profile("unhurried")
    pytest.main(["--version"])  # imports its own plug-ins
    gc.collect()
    gc.freeze()
    measure_reach(files, arguments.jobs)
    try_mutants(files, arguments.jobs)
    sys.exit(0 if report(files) else 1)


if __name__ == "__main__":
    main()
