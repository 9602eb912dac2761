"""Data on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json

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
