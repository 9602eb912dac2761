"""`tcl`: registers the commands, and turns every failure into one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

import tcl
from tcl.errors import MissingExtraError, TclError
from tcl_cli._console import out
from tcl_cli.embed import embed
from tcl_cli.eval import eval_app
from tcl_cli.export import export
from tcl_cli.pretrain import pretrain
from tcl_cli.recipes import recipes_app
from tcl_cli.scenes import scenes
from tcl_cli.search import search

INTERRUPTED = 130
EXTRA_OF = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "transformers": "train",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}

EPILOG = """\
[bold]From nothing to search, on any machine:[/]

  tcl pretrain                                            a small model on built-in data, a few minutes

  tcl embed images/ --out vecs.npy                        vectors of a folder

  tcl search "a small red circle" --index vecs.npy        the nearest images

  tcl export                                              the same model as ONNX, verified

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a verification failed, 130 interrupted.
"""

app = typer.Typer(
    name="tcl",
    help="Vision-language pre-training with triple contrastive learning: pretrain, evaluate, export, embed, search.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.data(f"tcl {tcl.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also TCL_DEBUG=1.")] = False,
) -> None:
    """Options of every command; `main` acts on --debug, wherever it stands."""


TRAIN, USE, SETTINGS = "Train and evaluate", "Use a model", "Settings and data"
app.command(rich_help_panel=TRAIN)(pretrain)
app.add_typer(eval_app, name="eval", rich_help_panel=TRAIN)
app.command(rich_help_panel=USE)(embed)
app.command(rich_help_panel=USE)(search)
app.command(rich_help_panel=USE)(export)
app.add_typer(recipes_app, name="recipes", rich_help_panel=SETTINGS)
app.command(rich_help_panel=SETTINGS)(scenes)


def main() -> None:
    """The `tcl` command."""
    arguments = sys.argv[1:]
    debug = os.environ.get("TCL_DEBUG", "") not in ("", "0")
    if "--debug" in arguments:  # people append it to the line that failed
        debug = True
        arguments.remove("--debug")
    try:
        code = run(arguments)
    except Exception as error:
        if debug:
            raise
        code = _report(error)
    _flush()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns:
        The exit code. Failures other than wrong usage are raised.
    """
    try:
        code = app(arguments, standalone_mode=False, prog_name="tcl")
    except typer.TyperException as error:  # wrong options and arguments, found by typer
        out.error(error.format_message(), hint=_help_hint(error))
        return error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        out.message("Interrupted.")
    return code if isinstance(code, int) else 0


def _help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'tcl'} --help"


def _report(error: Exception) -> int:
    """Print an error for people, and return the exit code."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] in EXTRA_OF:
        package = error.name.partition(".")[0]
        error = MissingExtraError(package, EXTRA_OF[package])
    if isinstance(error, TclError):
        out.error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:  # the reader of our output has gone, as in `tcl ... | head`
            return _close_stdout()
        place = f"{error.filename}: " if error.filename else ""
        out.error(f"{place}{error.strerror or error}")
        return 1
    out.error(f"{type(error).__name__}: {' '.join(str(error).split())}", hint="run again with --debug to see where")
    return 1


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()


def _close_stdout() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it exits
    return 1
