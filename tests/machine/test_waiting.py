"""OpenMP's threads do not spin long where others want the core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tcl.machine.waiting import GIVEN, wait_politely

ROOT = Path(__file__).parents[2]
SHOW = """
import os, sys
import tcl_cli.main
assert "torch" not in sys.modules
def run(arguments):
    print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
tcl_cli.main.run = run
tcl_cli.main.main()
"""


@pytest.mark.parametrize("name", GIVEN)
def test_what_the_user_says_stays(name: str) -> None:
    environment = {name: "7"}
    wait_politely(environment)
    assert environment == {name: "7"}


def test_the_command_sets_it_before_torch_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "10000", "1"], done.stderr


@pytest.mark.parametrize(("given", "reported"), [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_openmp_takes_it(given: dict[str, str], reported: str) -> None:
    """As the library itself reports: set after the start of the process, before torch loads it."""
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE"} | given
    program = "from tcl.machine.waiting import wait_politely; wait_politely(); import torch"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{reported}'" in done.stderr
