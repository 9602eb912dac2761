"""Runs of pytest in forked processes: with other source for one module, within limits, and watched."""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import coverage
import pytest

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
MEMORY = 8 << 30
PYTEST = ["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
PYTEST += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # some plug-ins are imported before the fork


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: the module that gets other source.
        source: that one.
        tests: files or single tests.
        seconds: of computing until it is ended; of waiting, five times that.
        limits: seconds of single tests, after which they fail: a loop without end is noticed by the first one.
        reach: where to note which tests reach which lines; only then does the run go on after a failure.
    """

    path: Path
    source: str
    tests: list[str]
    seconds: float
    limits: Mapping[str, float] = field(default_factory=dict)
    reach: Path | None = None

    def __call__(self, folder: Path) -> int:
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(self.seconds),) * 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sys.dont_write_bytecode = False  # compile the project and its tests once, not for each mutant
        sys.path.insert(0, str(ROOT))
        sys.meta_path.insert(0, Replaced(self.path, self.source))
        options = [*PYTEST, f"--basetemp={folder / 'tmp'}"]
        if self.reach is None:
            return pytest.main([*options, "-x", *self.tests], plugins=[Limits(self.limits)])
        watch = Reach(self.path)
        code = pytest.main([*options, *self.tests], plugins=[watch])
        self.reach.write_text(json.dumps(watch.result()), encoding="utf-8")
        # A test that cannot be asked for by its name would look like one that notices every mutant.
        return code if code > 1 else pytest.main([*options, "--collect-only", *watch.seconds])


def run_all(runs: Iterable[tuple[T, Run]], at_once: int) -> Iterator[tuple[T, int, float, str]]:
    """What each run is for, its exit code (negative: ended by a signal), its seconds, and its output."""
    waiting, running = iter(runs), dict[int, tuple[T, Path, float, float]]()
    more = True
    try:
        while more or running:
            while more and len(running) < at_once:
                what, run = next(waiting, (None, None))
                more = run is not None
                if what is not None and run is not None:
                    folder, now = Path(tempfile.mkdtemp(prefix="mutant-")), time.monotonic()
                    running[_fork(run, folder)] = what, folder, now, now + 5 * run.seconds
            for pid, (what, folder, start, deadline) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended or time.monotonic() > deadline:
                    _end(pid)
                    code = os.waitstatus_to_exitcode(status if ended else os.waitpid(pid, 0)[1])
                    output = (folder / "output").read_text(encoding="utf-8", errors="replace")
                    shutil.rmtree(folder, ignore_errors=True)
                    del running[pid]
                    yield what, code, time.monotonic() - start, output
            time.sleep(0.02)
    finally:
        for pid, (_, folder, _, _) in running.items():
            _end(pid)
            shutil.rmtree(folder, ignore_errors=True)


def _fork(run: Run, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.setsid()  # what it starts ends with it
            code = run(folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class Replaced(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module of the project from other source."""

    def __init__(self, path: Path, source: str) -> None:
        super().__init__(".".join(path.relative_to(ROOT).with_suffix("").parts), str(path))
        self.source = source

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        ours = fullname == self.name
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self) if ours else None

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Limits:
    """A plug-in of pytest: each test fails after its own time."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.timeout(self.seconds[item.nodeid]))


class Reach:
    """A plug-in of pytest: which tests reach which lines of a file, how long they take, which of them fail."""

    def __init__(self, path: Path) -> None:
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

    def result(self) -> dict[str, Any]:
        self.coverage.stop()
        for test in self.failed:
            del self.seconds[test]
        lines = self.coverage.get_data().contexts_by_lineno(self.path)
        return {"lines": lines, "seconds": self.seconds, "failed": sorted(self.failed)}
