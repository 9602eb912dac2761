"""The one way out: data goes to stdout; messages, hints, errors and progress go to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

from tcl.errors import without_secrets
from tcl.files.names import on_one_line

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Task
    from rich.text import Text

PLAIN_INTERVAL = 5.0  # seconds between progress lines when stderr is no terminal


class Advance(Protocol):
    """Reports progress: `n` more items are done; `info` (loss, samples_per_second, ...) is shown beside the bar.

    `total` says how many there are, where that is known only now.
    """

    def __call__(self, n: int = 1, *, total: int | None = None, **info: object) -> None: ...


class Console:
    """What commands write with. While a bar is shown, what goes to stderr is printed above it."""

    def __init__(self) -> None:
        self._above: RichConsole | None = None  # of the bar that is shown

    def _say(self, *parts: tuple[str, str]) -> None:
        """A line on stderr, of texts with a style of rich's or none."""
        if self._above:
            from rich.text import Text

            self._above.print(Text.assemble(*parts), soft_wrap=True)
            return
        for text, style in parts:
            colours = [word for word in style.split() if word not in ("bold", "dim")]
            fg = colours[0] if colours else None
            typer.secho(text, err=True, nl=False, fg=fg, bold="bold" in style or None, dim="dim" in style or None)
        typer.echo(err=True)

    def data(self, text: str) -> None:
        """A line of the command's result, on stdout."""
        typer.echo(_unicode(text))

    def json(self, values: Mapping[str, Any]) -> None:
        """The command's result as one JSON object, on stdout."""
        typer.echo(_unicode(without_secrets(json.dumps(values, ensure_ascii=False))))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        """The command's result as a table: drawn on a terminal, tab-separated with a header line otherwise."""
        if not sys.stdout.isatty():
            for row in (columns, *rows):
                typer.echo("\t".join(_cell(value) for value in row))
            return
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name, sample in zip(columns, rows[0] if rows else columns, strict=True):
            table.add_column(name, justify="right" if isinstance(sample, int | float) else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(_cell, row))
        RichConsole(markup=False, emoji=False).print(table)  # data, as it is

    def message(self, text: str) -> None:
        """What the command did or is doing, on stderr."""
        self._say((_lines(text), ""))

    def hint(self, text: str) -> None:
        """What the user can do next, on stderr."""
        self._say((f"  -> {_lines(text)}", "dim"))

    def warning(self, text: str) -> None:
        """Something the user should know about, on stderr."""
        self._say((f"Warning: {_lines(text)}", "yellow"))

    def error(self, message: str, hint: str | None = None) -> None:
        """Why the command failed and what to do next, on stderr."""
        self._say(("Error: ", "bold red"), (_lines(message), ""))
        if hint:
            self.hint(hint)

    @contextmanager
    def progress(self, description: str, total: int | None = None, initial: int = 0) -> Iterator[Advance]:
        """Show the progress of long work: a bar on a terminal, otherwise a plain line every few seconds.

        Args:
            description: what is going on, e.g. `Embedding`.
            total: items to do, when known.
            initial: items done before, by the run that is resumed.

        Yields:
            `advance(n, **info)`.
        """
        if sys.stderr.isatty() and self._above is None:
            from rich.console import Console as RichConsole

            self._above = RichConsole(stderr=True, markup=False, emoji=False, highlight=False)
            try:
                with _bar(self._above, description, total, initial) as advance:
                    yield advance
            finally:
                self._above = None
        else:
            lines = _PlainProgress(description, total, initial)
            yield lines.advance
            lines.finish()


def _unicode(text: str) -> str:
    """Names that are no Unicode as the escape that JSON has too."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cell(value: object) -> str:
    return on_one_line(without_secrets(format_value(value)))


def _lines(text: str) -> str:
    """Text whose line breaks are its own; the names in it send nothing else to the terminal."""
    return "\n".join(map(on_one_line, without_secrets(text).split("\n")))


def format_value(value: object) -> str:
    """A value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(count: int, things: str) -> str:
    """`2 images`, and `1 image` of `images`."""
    return f"{count} {things.removesuffix('s') if count == 1 else things}"


def format_seconds(seconds: float) -> str:
    """`0:42`, `12:05` or `3:07:20`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _PlainProgress:
    """One line every few seconds, for logs."""

    def __init__(self, description: str, total: int | None, initial: int) -> None:
        self.description, self.total, self.initial = description, total, initial
        self.done = initial
        self.info: dict[str, object] = {}
        self.started = self.printed = time.monotonic()

    def advance(self, n: int = 1, *, total: int | None = None, **info: object) -> None:
        self.done += n
        self.total = total or self.total
        self.info |= info
        if time.monotonic() - self.printed >= PLAIN_INTERVAL:
            self._print()

    def finish(self) -> None:
        if self.printed > self.started:  # short work needs no line at all
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        seconds = self.printed - self.started
        rate = (self.done - self.initial) / seconds if seconds else 0.0
        parts = [f"{self.description}: {self.done}" + (f"/{self.total}" if self.total else "")]
        parts += [f"{name.replace('_', ' ')} {format_value(value)}" for name, value in self.info.items()]
        parts.append(f"{rate:.1f}/s")
        if self.total and rate and self.done < self.total:
            parts.append(f"ETA {format_seconds((self.total - self.done) / rate)}")
        typer.echo("  ".join(parts), err=True)


def _count_of(task: Task) -> str:
    """`12/30`; without a total, the count and the speed."""
    if task.total is not None:
        return f"{task.completed:.0f}/{task.total:.0f}"
    return f"{task.completed:.0f}" + (f"  {task.speed:.1f}/s" if task.speed else "")


def _rest_of(task: Task) -> str:
    """How long it will take, where that is known."""
    return "" if task.time_remaining is None else f"ETA {format_seconds(task.time_remaining)}"


@contextmanager
def _bar(console: RichConsole, description: str, total: int | None, initial: int) -> Iterator[Advance]:
    """A bar that goes when it is done: what is worth keeping is said in a line."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Told(ProgressColumn):
        def __init__(self, tell: Callable[[Task], str], style: str) -> None:
            super().__init__()
            self.tell, self.style = tell, style

        def render(self, task: Task) -> Text:
            return Text(self.tell(task), style=self.style)

    bar_width = 24 if console.width >= 120 else 6
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=bar_width),
        Told(_count_of, "progress.download"),
        TextColumn("{task.fields[info]}", markup=False),
        TimeElapsedColumn(),
        Told(_rest_of, "progress.remaining"),
    ]
    # What does not fit beside bar, counts and times on a narrow terminal is left out, rather than squeezing those.
    fixed = len(description) + bar_width + 2 * len(str(total or 10**6)) + 1 + len("0:00:00 ETA 0:00:00") + len(columns)
    shown: dict[str, object] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=initial, info="")

        def advance(n: int = 1, *, total: int | None = None, **info: object) -> None:
            shown.update(info)
            text = ""
            for name, value in shown.items():
                part = f"{name.replace('_', ' ')} {format_value(value)}"
                if fixed + len(text) + 2 + len(part) > console.width:
                    break
                text += ("  " if text else "") + part
            progress.update(task, advance=n, total=total, info=text)

        yield advance


out = Console()
