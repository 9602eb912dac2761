"""Test runs in forked processes: with a mutated module, within limits, and watched for what they reach."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
MEMORY = 8 << 30


@dataclass(frozen=True)
class Child:
    """One run of pytest in a child.

    Attributes:
        root: of the project.
        path: the module that gets other source.
        source: that one.
        tests: files or single tests.
        seconds: of computing after which it is ended; of waiting, five times that.
        reach: where to note which tests reach which lines; the run then goes on after a failure.
    """

    root: Path
    path: Path
    source: str
    tests: list[str]
    seconds: float
    reach: Path | None = None

    def run(self, folder: Path) -> int:
        with (folder / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        limit = int(self.seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.dont_write_bytecode = False  # the project and its tests are compiled once, not for each mutant
        sys.path.insert(0, str(self.root))
        sys.meta_path.insert(0, Replaced(self.root, self.path, self.source))
        reach = Reach(self.path) if self.reach else None
        options = f"-q --tb=no --basetemp={folder / 'tmp'} -p no:cacheprovider -p pytest_timeout".split()
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *([] if reach else ["-x"])]
        code = int(pytest.main([*options, *self.tests], plugins=[reach] if reach else []))
        if reach and self.reach:
            reach.save(self.reach)
        return code


def run_children(runs: Iterable[tuple[T, Child]], at_once: int) -> Iterator[tuple[T, int, float, str]]:
    """What each run is for, its exit code (negative: ended by a signal), its seconds, and its output."""
    waiting, running = iter(runs), dict[int, tuple[T, Path, float, float]]()
    more = True
    try:
        while more or running:
            while more and len(running) < at_once:
                what, child = next(waiting, (None, None))
                more = child is not None
                if child is not None:
                    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
                    now = time.monotonic()
                    running[_fork(child, folder)] = what, folder, now, now + 5 * child.seconds
            for pid, (what, folder, start, deadline) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended and time.monotonic() < deadline:
                    continue
                _end(pid)
                code = os.waitstatus_to_exitcode(status if ended else os.waitpid(pid, 0)[1])
                del running[pid]
                output = (folder / "output").read_text(encoding="utf-8", errors="replace")
                shutil.rmtree(folder, ignore_errors=True)
                yield what, code, time.monotonic() - start, output
            time.sleep(0.02)
    finally:
        for pid in running:
            _end(pid)


def _fork(child: Child, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setsid()  # so that what it starts ends with it
        code = child.run(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Replaced(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module of the project from other source."""

    def __init__(self, root: Path, path: Path, source: str) -> None:
        super().__init__(".".join(path.relative_to(root).with_suffix("").parts), str(path))
        self.source = source

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Reach:
    """A plug-in of pytest: which tests reach which lines of a file, how long they take, which of them fail."""

    def __init__(self, path: Path) -> None:
        import coverage

        self.path, self.failed, self.seconds = str(path), set[str](), dict[str, float]()
        self.test, self.shared = "", 0
        self.coverage = coverage.Coverage(data_file=None, include=[self.path])
        self.coverage.start()

    def pytest_runtest_setup(self, item: Any) -> None:
        self.test = item.nodeid
        self.coverage.switch_context(self.test)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """What a shared fixture reaches counts for every test."""
        self.shared += fixturedef.scope != "function"
        self.coverage.switch_context("" if self.shared else self.test)
        try:
            return (yield)
        finally:
            self.shared -= fixturedef.scope != "function"
            self.coverage.switch_context("" if self.shared else self.test)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self.coverage.switch_context("")

    def save(self, path: Path) -> None:
        self.coverage.stop()
        lines = self.coverage.get_data().contexts_by_lineno(self.path)
        seconds = {test: seconds for test, seconds in self.seconds.items() if test not in self.failed}
        record = {"seconds": seconds, "failed": sorted(self.failed), "lines": lines}
        path.write_text(json.dumps(record), encoding="utf-8")
