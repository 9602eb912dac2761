"""Streams, exit codes, one line per failure, and a start without heavy imports."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import typer

import tcl
from tcl.errors import DataError, VerificationError
from tcl_cli import main
from tcl_cli._commands import COMMANDS, load
from tcl_cli.main import app, run

REPOSITORY = Path(__file__).parents[2]
LINES = [
    [],
    ["pretrain"],
    ["finetune"],
    ["eval"],
    ["eval", "retrieval"],
    ["embed"],
    ["search"],
    ["export"],
    ["index"],
    ["dedup"],
    ["bench"],
    ["scenes"],
    ["doctor"],
    ["explain"],
    ["inspect"],
    ["convert"],
    ["data"],
    *(["data", name] for name in ("check", "pack")),
    ["recipes"],
    *(["recipes", name] for name in ("ls", "show", "cp", "validate")),
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the command raises: put it in the list."""
    errors: list[BaseException] = []

    def fail(*_: object, **__: object) -> None:
        raise errors[0]

    monkeypatch.setattr(main, "app", fail)
    return errors


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (DataError("x.csv: bad", hint="repair it"), 1, ["Error: x.csv: bad", "  -> repair it"]),
        (VerificationError("off"), 3, ["Error: off"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "v.npy"),
            1,
            ["Error: v.npy: No space left on device", "  -> free some space; a training run continues with --resume"],
        ),
        (KeyError("a"), 1, ["Error: KeyError: 'a'", "  -> run again with --debug to see where"]),
        (
            ModuleNotFoundError("no", name="onnxscript.ir"),
            2,
            ["Error: this needs onnxscript, which is not installed", "  -> pip install '.[onnx]'"],
        ),
        (KeyboardInterrupt(), 130, ["Interrupted."]),
    ],
)
def test_failures(
    failing: list[BaseException],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    lines: list[str],
) -> None:
    failing.append(error)
    assert run(["embed"]) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--debug", "embed"], ["embed", "--debug"]])
def test_debug_shows_the_traceback(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    failing.append(DataError("bad"))
    assert run(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_by_environment(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCL_DEBUG", "1")
    failing.append(DataError("bad"))
    assert run([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tcl {tcl.version.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["embd"], "No such command 'embd'. Did you mean 'embed'?", "tcl --help"),
        (["embed"], "Missing argument 'SOURCE'.", "tcl embed --help"),
        (["embed", "x", "--out", "y.npy", "--batch-size", "0"], "Invalid value for '--batch-size'", "tcl embed --help"),
        (["search", "x", "--inde", "y"], "No such option: --inde", "tcl search --help"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"Error: {message}")
    assert captured.err.endswith(f"  -> {hint}\n")
    assert captured.out == ""


@pytest.mark.parametrize("command", [*LINES], ids=lambda command: " ".join(command) or "tcl")
@pytest.mark.parametrize("width", [80, 120])
def test_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run([*command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.lstrip().startswith(f"Usage: {' '.join(['tcl', *command])}")
    assert captured.err == ""
    assert max(map(len, captured.out.splitlines())) <= width
    assert "<bool>" not in captured.out and not re.search(r"\|\w*[-a-z]│", captured.out)
    assert not [letter for letter in captured.out if unicodedata.category(letter) == "So" and letter not in "─│╭╮╰╯"]


def test_every_command_is_tested() -> None:
    assert {name for commands in COMMANDS.values() for name in commands} == {words[0] for words in LINES if words}


@pytest.mark.parametrize("name", [name for commands in COMMANDS.values() for name in commands])
def test_the_list_of_commands_says_what_they_say_of_themselves(name: str) -> None:
    listed = typer.main.get_command(app).commands[name]
    command = load(name)
    assert (command.name, " ".join(command.help.split("\n\n")[0].split())) == (name, listed.help)


LIGHT = """
import sys
from tcl_cli.main import run
for command in {commands}:
    assert run([*command, "--help"]) == 0
heavy = {{"torch", "numpy", "pyarrow", "PIL", "onnx", "onnxruntime", "timm", "transformers", "jinja2"}}
found = heavy & set(sys.modules)
assert not found, found
"""


def test_help_imports_nothing_heavy() -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    script = LIGHT.format(commands=LINES)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BARE = f"""
import typer

app = typer.Typer(no_args_is_help=True)
for number in range({sum(map(len, COMMANDS.values()))}):
    @app.command(f"command{{number}}", help="Do something.")
    def command(thing: str, number: int = 1) -> None: ...
app()
"""


def test_help_costs_little_more_than_that_of_an_empty_application(tmp_path: Path) -> None:
    # With bytecode, as an installed tcl has it; the first run writes it.
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    bare = tmp_path / "bare.py"
    bare.write_text(BARE)

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command, "--help"], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    pairs = [(seconds("-m", "tcl_cli"), seconds(str(bare))) for _ in range(6)]  # in turn, for a busy machine
    ours, theirs = map(min, zip(*pairs, strict=True))
    assert ours <= 1.3 * theirs, pairs


@pytest.mark.parametrize("arguments", [["recipes", "show", "demo"], ["--help"]], ids=" ".join)
@pytest.mark.parametrize("also_stderr", [False, True])
def test_a_reader_that_goes_away(arguments: list[str], also_stderr: bool) -> None:
    with start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        if also_stderr:
            process.stderr.close()
            said = ""
        else:
            said = process.stderr.read()
        assert (process.wait(), said) == (141, "")


def test_output_that_was_closed_before_the_start() -> None:
    with start(["recipes", "show", "demo"], stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1)) as process:
        assert (process.stderr.read(), process.wait()) == ("", 0)
    with start(["recipes", "show", "x"], stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2)) as process:
        assert (process.stdout.read(), process.wait()) == ("", 2)


def start(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tcl_cli", *arguments]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True, **options)


def test_another_pipe_that_breaks_is_an_error(failing: list[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    failing.append(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert run(["embed"]) == 1
    assert capfd.readouterr().err.startswith("Error: Broken pipe\n")
