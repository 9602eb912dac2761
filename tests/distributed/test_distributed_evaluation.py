"""`torchrun -m tcl_cli eval`: several processes print and write what one does, and say once what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tcl import TCL
from tcl_cli.main import run
from tests.distributed.ranks import run_ranks

ROOT = Path(__file__).parents[2]

FAILING = """
import os, sys
from tcl import TCL
from tcl_cli import main

encode = TCL.encode_image

def fail(self, images):
    if os.environ["RANK"] == "1":
        raise RuntimeError("out of memory")
    return encode(self, images)

TCL.encode_image = fail
sys.exit(main.run(sys.argv[1:]))
"""


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, env=environment, text=True, capture_output=True)


@pytest.fixture
def place(tiny_model: TCL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("model")
    return tmp_path


def test_retrieval(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five images in batches of two and one, for two processes."""
    command = ["eval", "retrieval", "--model", "model", "--data", "scenes:val:5", "--k", "3", "--batch-size", "2"]
    Path("script.py").write_text("import sys; from tcl_cli.main import run; sys.exit(run(sys.argv[1:]))")
    shared = run_ranks(2, "script.py", *command, "--json", "--predictions", "shared.jsonl")
    assert shared.returncode == 0, shared.stderr
    capsys.readouterr()
    assert run([*command, "--json", "--predictions", "alone.jsonl"]) == 0
    assert json.loads(shared.stdout) == json.loads(capsys.readouterr().out) | {"predictions": "shared.jsonl"}
    assert Path("shared.jsonl").read_text() == Path("alone.jsonl").read_text() != ""
    assert shared.stderr.count("predictions in shared.jsonl") == 1


def test_one_process_that_fails_ends_all_with_one_message(place: Path) -> None:
    Path("script.py").write_text(FAILING)
    command = ["eval", "retrieval", "--model", "model", "--data", "scenes:val:5", "--batch-size", "2"]
    done = torchrun("script.py", *command, "--predictions", "said.jsonl")
    assert done.returncode != 0 and not done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert said == ["Error: process 1: RuntimeError: out of memory"]
    assert not Path("said.jsonl").exists()
