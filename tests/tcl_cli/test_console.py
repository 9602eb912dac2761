"""Data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tcl_cli import _console
from tcl_cli._console import counted, format_seconds, out


def test_streams(capsys: pytest.CaptureFixture[str]) -> None:
    out.data("row")
    out.json({"ü": 1})
    out.message("doing")
    out.hint("next")
    out.warning("odd")
    out.error("bad", hint="do this")
    captured = capsys.readouterr()
    assert captured.out == 'row\n{"ü": 1}\n'
    assert captured.err == "doing\n  -> next\nWarning: odd\nError: bad\n  -> do this\n"


def test_one_of_many_things() -> None:
    assert [counted(number, "images") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_tables_are_tab_separated_where_no_one_looks(capsys: pytest.CaptureFixture[str]) -> None:
    out.table(["rank", "score"], [[1, 0.123456]])
    assert capsys.readouterr().out == "rank\tscore\n1\t0.1235\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tables_and_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, stderr = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setattr("sys.stderr", stderr)
    out.table(["id", "score"], [["[red]a:heart:.png", 0.5]])
    with out.progress("Embedding", 3) as advance:
        advance(3, loss=0.25)
    assert "[red]a:heart:.png" in stdout.getvalue()  # data, as it is
    assert "Embedding" in stderr.getvalue() and "3/3" in stderr.getvalue() and "loss 0.25" in stderr.getvalue()


def test_names_send_nothing_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, shown = "two\nlines\x1b[31m\tcaf\udce9.png", r"two\nlines\x1b[31m\tcaf\udce9.png"
    out.table(["id", "score"], [[name, 0.5]])
    out.json({"id": name})
    out.data("caf\udce9.npy")
    out.warning("\x1b[31mred.png: odd\n  and more")
    captured = capsys.readouterr()
    header, row, line, path = captured.out.splitlines()
    assert (header, row, path) == ("id\tscore", f"{shown}\t0.5", r"caf\udce9.npy")
    assert json.loads(line) == {"id": name}
    assert captured.err == "Warning: \\x1b[31mred.png: odd\n  and more\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    out.table(["id", "score"], [[name, 0.5]])
    assert shown in terminal.getvalue()


def test_plain_lines_every_few_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(_console.time, "monotonic", lambda: now)
    with out.progress("Training", 100, initial=20) as advance:
        for _ in range(3):
            now += 4
            advance(20, loss=2.0, samples_per_second=640.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Training: 60/100  loss 2  samples per second 640  5.0/s  ETA 0:08"
    assert lines[-1].startswith("Training: 80/100")
    assert len(lines) == 2


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with out.progress("Reading") as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_seconds() -> None:
    assert [format_seconds(seconds) for seconds in (42, 725, 11240)] == ["0:42", "12:05", "3:07:20"]


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out.json({"text": "a\nb"})
    assert json.loads(capsys.readouterr().out) == {"text": "a\nb"}


def screen(raw: str) -> list[str]:
    """What a terminal shows in the end: of the control sequences those that rich uses."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", raw):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b"):
            if part.endswith("A"):
                row -= int(part[2:-1] or 1)
            elif part == "\x1b[2K":
                lines[row] = ""
        else:
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def on_terminal(program: str, width: int) -> str:
    """What a program writes to a terminal of this width."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=follower, stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        raw = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(leader, 65536):
                raw += piece
    os.close(leader)
    assert process.returncode == 0, raw.decode()
    return raw.decode()


RUN = """
import time
from tcl_cli.train.run_reporter import ConsoleReporter
from tcl_cli._console import out
with ConsoleReporter() as reporter:
    for _ in range(3):
        reporter.reading(10)
        time.sleep(0.15)
    reporter.started(0, 100)
    for step in range(1, 31):
        reporter.stepped(step)
        time.sleep(0.01)
    reporter.logged({"step": 30, "loss": 4.5, "itm": 0.5, "samples_per_second": 70.0})
    time.sleep(0.15)
    recalls = {f"val_{way}_r{k}": 50.0 for way in ("t2i", "i2t") for k in (1, 5, 10)}
    reporter.logged({"step": 30, "val_r_mean": 50.0} | recalls)
    reporter.message("something odd that takes a line of its own, longer than a terminal of eighty columns is wide")
    time.sleep(0.15)
    reporter.stepped(31)
out.hint("what is next")
"""


@pytest.mark.parametrize("width", [80, 200])
def test_what_is_said_while_a_bar_lives_stands_above_it(width: int) -> None:
    raw = on_terminal(RUN, width)
    shown = screen(raw)
    recalls = "step     30  R@1/5/10 %  text to image 50.0 / 50.0 / 50.0  image to text 50.0 / 50.0 / 50.0"
    odd = "Warning: something odd that takes a line of its own, longer than a terminal of eighty columns is wide"
    assert [line for line in shown if line] == [recalls, odd, "  -> what is next"]  # and no bar is left
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", raw)
    bars = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(("Indexing", "Training"))]
    assert max(map(len, bars)) <= width
    assert any("Training" in bar and "30/100" in bar and re.search(r"ETA \d+:\d\d\s*$", bar) for bar in bars)
    assert any("loss 4.5" in bar for bar in bars)
    indexing = [bar for bar in bars if bar.startswith("Indexing")]
    assert any(re.search(r"\b20  \d+\.\d/s", bar) for bar in indexing) and not any("ETA" in bar for bar in indexing)


def test_in_a_pipe_every_line_is_a_whole_one() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    program = "import tcl_cli._console as console; console.PLAIN_INTERVAL = 0.1\n" + RUN
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    starts = ("Indexing: ", "Training: ", "step     30  R@1/5/10 %  ", "Warning: something odd", "  -> what is next")
    assert done.stderr and all(line.startswith(starts) for line in done.stderr.splitlines()), done.stderr
    assert "\x1b" not in done.stderr and "ETA" in done.stderr
