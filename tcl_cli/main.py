"""`tcl`: runs a command, and turns every failure into one line and an exit code."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tcl.errors import MissingExtraError, TclError
from tcl.machine.waiting import wait_politely
from tcl.version import __version__
from tcl_cli._commands import Commands, add_commands
from tcl_cli._console import out
from tcl_cli._mistakes import hint_for, neighbour

STDOUT, STDERR = 1, 2
INTERRUPTED = 130
READER_GONE = 141  # what a shell reports of tools that SIGPIPE has ended
EXTRA_OF = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "transformers": "train",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "ray": "ray",
    "faiss": "search",
    "lancedb": "lancedb",
}

EPILOG = """\
[bold]From nothing to search, on any machine[/]

  tcl pretrain                                       a small model
  tcl embed images/ --out vecs.npy                   vectors of a folder
  tcl search "a small red circle" --index vecs.npy   the nearest images
  tcl export                                         ONNX, verified

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a verification failed, 130 interrupted, 141 nobody reads the output.
"""

app = typer.Typer(
    name="tcl",
    cls=Commands,
    help="Vision-language pre-training with triple contrastive learning: pretrain, evaluate, export, embed, search.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.data(f"tcl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also TCL_DEBUG=1.")] = False,
) -> None:
    """Options of every command; `main` acts on --debug, wherever it stands."""


add_commands(app)


def main() -> None:
    """The `tcl` command."""
    wait_politely()
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is None:  # closed by who started us; what is written there is not wanted
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        code = _leave_quietly()
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM acts as Ctrl-C does; launchers and schedulers may send it several times."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(arguments: list[str]) -> int:
    """Run one command line; every failure becomes one line on stderr.

    Returns:
        The exit code.
    """
    output = os.fstat(STDOUT)
    debug = os.environ.get("TCL_DEBUG", "") not in ("", "0")
    if "--debug" in arguments:  # anywhere, as people append it to the line that failed
        debug = True
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False, prog_name="tcl")
    except typer.TyperException as error:  # wrong options and arguments, found by typer
        if type(error).__name__ != "NoArgsIsHelpError":  # that one has printed the help already
            # pydantic's words before a wrong choice, and the line breaks between the choices
            message = error.format_message().replace(": Value error, ", ": ").replace("\n\t", " ")
            out.error(message, hint=hint_for(error, arguments))
        return error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as stop:  # typer's and rich's answer to a broken pipe
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        by_rich = not os.path.samestat(output, os.fstat(STDOUT))  # it has put the null device there
        return READER_GONE if by_rich else _report(stop.__context__)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error, arguments)
    if code == INTERRUPTED:
        out.message("Interrupted.")
    return code if isinstance(code, int) else 0


def _report(error: Exception, arguments: Sequence[str] = ()) -> int:
    """Print an error for people, and return the exit code."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] in EXTRA_OF:
        package = error.name.partition(".")[0]
        error = MissingExtraError(package, EXTRA_OF[package])
    if isinstance(error, TclError):
        near = neighbour(error.message, arguments)
        out.error(error.message, f"did you mean {near}?" if near else error.hint)
        return error.exit_code
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE and _reader_is_gone():
            return _leave_quietly()
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno == errno.ENOSPC
        out.error(
            f"{place}{error.strerror or error}",
            hint="free some space; a training run continues with --resume"
            if full
            else "check the path and its permissions",
        )
        return 1
    # Of an error that a worker process passes on, torch's text is the whole traceback; its last line is what happened.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[-1] if "Traceback" in str(error) else " ".join(lines)
    out.error(f"{type(error).__name__}: {text}", hint="run again with --debug to see where")
    return 1


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more, as in `tcl ... | head`; other pipes break too, such as a worker's."""
    poll = select.poll()
    for handle in (STDOUT, STDERR):
        poll.register(handle, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _leave_quietly() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # or the interpreter complains while it exits
    return READER_GONE
