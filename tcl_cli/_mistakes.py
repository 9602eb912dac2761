"""What was meant by a command line that is wrong: settings written as options, other names, a slip of a finger."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    **dict.fromkeys(("zeroshot", "zero-shot", "zero_shot", "classify", "imagenet"), "classification"),
    **dict.fromkeys(("ve", "snli-ve", "snli_ve", "nli"), "entailment"),
    **dict.fromkeys(("itr", "coco", "flickr", "flickr30k", "recall"), "retrieval"),
    **dict.fromkeys(("refcoco", "refcoco+"), "grounding"),
    **dict.fromkeys(("qa", "question-answering"), "vqa"),
    **dict.fromkeys(("train", "pre-train", "fit"), "pretrain"),
    **dict.fromkeys(("fine-tune", "fine_tune", "ft"), "finetune"),
    **dict.fromkeys(("evaluate", "test", "validate"), "eval"),
    **dict.fromkeys(("encode", "embeddings", "vectors"), "embed"),
    **dict.fromkeys(("query", "find"), "search"),
    **dict.fromkeys(("info", "describe", "show"), "inspect"),
    **dict.fromkeys(("benchmark",), "bench"),
    **dict.fromkeys(("list",), "ls"),
    **dict.fromkeys(("copy",), "cp"),
}
"""What people type for a command or a task."""

WITH_SETTINGS = ("pretrain", "finetune", "show", "validate")  # commands that take key=value
ABSENT = re.compile(r"no such|neither a file|no recipe|no file|not found|nothing there|is not there|no model")


def hint_for(error: Any, arguments: Sequence[str]) -> str:
    """What to do about a command line that typer refuses.

    Args:
        error: typer's.
        arguments: of the command line.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tcl"
    option = getattr(error, "option_name", None)
    if option and str(option).startswith("--") and command.rpartition(" ")[2] in WITH_SETTINGS:
        from tcl.config.recipe import nearest_setting

        if key := nearest_setting(option.removeprefix("--")):
            return f"settings are written without dashes: {command} {key}={_value_of(option, arguments)}"
    unknown = re.search(r"No such command '(.*?)'", error.format_message())
    known = getattr(context.command, "commands", {}) if context else {}
    if unknown and (meant := COMMANDS.get(unknown[1].lower())) in known:
        return f"did you mean {command} {meant}?"
    return f"{command} --help"


def _value_of(option: str, arguments: Sequence[str]) -> str:
    """What stands behind an option."""
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and place + 1 < len(arguments) and not arguments[place + 1].startswith("-"):
            return arguments[place + 1]
    return "VALUE"


def neighbour(message: str, arguments: Sequence[str]) -> str | None:
    """A file or folder that is there, in place of an argument that is not, of which an error speaks.

    Args:
        message: of the error.
        arguments: of the command line.
    """
    if not ABSENT.search(message):
        return None
    for argument in arguments:
        path = argument.partition("=")[2] if argument.startswith("--") else argument
        folder, name = os.path.split(path.rstrip("/"))
        if len(name) < 3 or path not in message or os.path.lexists(path) or not os.path.isdir(folder or "."):
            continue
        stems: dict[str, list[str]] = {}  # a common suffix makes no neighbours
        for there in os.listdir(folder or "."):
            stems.setdefault(os.path.splitext(there)[0], []).append(there)
        close = difflib.get_close_matches(os.path.splitext(name)[0], stems, n=1, cutoff=0.74)
        if close:
            return os.path.join(folder, difflib.get_close_matches(name, stems[close[0]], n=1, cutoff=0)[0])
    return None
