"""Commands in the README, the docs, the recipes and the help screens name commands and options that exist."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from tcl.config.recipe import settings
from tcl_cli._commands import load
from tcl_cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.yaml")),
]


def commands_in(text: str) -> list[str]:
    """Lines that begin with `tcl`, at most behind a comment mark or a prompt; a backslash continues a line."""
    return re.findall(r"^(?:# |\$ |    )?(tcl .+)$", text.replace("\\\n", " "), flags=re.MULTILINE)


def documented() -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES, *(ROOT / "tcl_cli").rglob("*.py"))]
    return [command for text in texts for command in commands_in(text)]


command_named = cache(load)


@cache
def known_settings() -> set[str]:
    return {name for name, _ in settings()}


def check(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    assert words[0] in typer.main.get_command(app).commands, f"no such command: {command}"
    group = command_named(words.pop(0))
    if hasattr(group, "commands"):
        assert words[0] in group.commands, f"no such command: {command}"
        group = group.commands[words.pop(0)]
    options = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("-"):
            assert name in options, f"{name} is no option of: {command}"
        elif re.fullmatch(r"[a-z]+\.[a-z_.]+", name) and "=" in word:
            assert name in known_settings(), f"{name} is no setting: {command}"


def test_documented_commands_exist() -> None:
    commands = documented()
    assert len(commands) > 30 and any("--rerank" in command for command in commands)
    for command in commands:
        check(command)


@pytest.mark.parametrize("command", ["tcl pretrain --epochs 3", "tcl train", "tcl pretrain optim.learning_rate=1"])
def test_a_wrong_command_would_be_noticed(command: str) -> None:
    with pytest.raises(AssertionError):
        check(command)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        assert page.stat().st_size > 200, f"{page.name} says nothing"
        for target, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(page.parent / target), f"{page.name} links to {target}#{anchor}"


def test_tests_that_the_docs_name_exist() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in code, f"{page.name} names {name}"


def test_every_setting_is_in_the_table_of_settings() -> None:
    table = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, _ in settings():
        assert f"`{'.'.join(name.split('.')[:2])}`" in table, f"docs/recipes.md lacks {name}"
